"""The watched learner: it measures what passes through, changes nothing, and continues where it was."""

import random

import pytest
import torch
from tests.tiny import tiny_policy
from tests.unit.test_discriminator_learner import batch, learner, same, weights
from tests.unit.test_discriminator_model import ids, picture, prompt
from transformers import TrainerControl, TrainerState

from prism_cli.discriminator.inputs import Comparisons
from prism_cli.trainers.checkpoints import AlreadyTrainedError
from prism_cli.trainers.drift_stop import DriftStop, StopWhenFlat, is_flat
from prism_cli.trainers.watch import WatchedLearner

CELLS, COLORS = ["a1", "a2", "b1", "b2", "c3"], ["red", "green", "blue"]


def decode(token_ids):
    return tiny_policy()[1].tokenizer.decode(token_ids)


def watched(one=None, **options):
    return WatchedLearner(one or learner(), decode, **options)


def game(step, prompts=6, rollouts=2):
    """Policy and teacher see alike; in reasoning the policy says `holds` and is shorter."""
    draw = random.Random(step)

    def say(color, *extra):
        seen = f"{draw.choice(CELLS)} {color} square"
        return {"perception": ids(seen), "reasoning": ids(" ".join([draw.choice(CELLS), *extra]))}

    colors = [draw.choice(COLORS) for _ in range(prompts)]
    return Comparisons(
        [prompt(picture(color)) for color in colors],
        [say(color, "plus", "2", "is", "4") for color in colors],
        [say(color, "holds") for color in colors for _ in range(rollouts)],
        [p for p in range(prompts) for _ in range(rollouts)],
    )


def play(one, *steps):
    """Metrics of each step, without dropout's noise."""
    return [one.score_and_update(game(step)).metrics for step in steps]


# Measuring ------------------------------------------------------------------------------------------------------------


def test_only_pairs_that_are_compared_count_as_valid():
    assert watched().score_and_update(batch()).metrics["discriminator/valid_fraction"] == 4 / 5
    half = batch()._replace(teacher=[None, batch().teacher[1]])
    assert watched().score_and_update(half).metrics["discriminator/valid_fraction"] == 2 / 5


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_watching_changes_neither_scores_nor_weights(kind):
    plain, one = learner(kind, dropout=0.1), learner(kind, dropout=0.1)
    seen = watched(one, probe_every=1, stop=DriftStop(0, 1, 1, 0.0))
    results = []
    for each in (plain, seen):
        torch.manual_seed(3)
        results.append([each.score_and_update(game(step)).scores for step in (0, 1)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert same(weights(plain), weights(one))
    assert torch.equal(plain.score(game(2)).scores, seen.score(game(2)).scores)


def test_a_mixture_tells_which_experts_read_which_part():
    metrics = watched(learner("moe")).score_and_update(batch()).metrics
    assert {f"discriminator/router_load/{part}/{e}" for part in ("perception", "reasoning") for e in range(4)} <= set(
        metrics
    )


def test_drift_is_measured_a_part_at_a_time_over_the_steps_since_the_last_time():
    one = watched(stop=DriftStop(min_steps=100, every=2, patience=1, delta=0.0))
    lines = play(one, 0, 1, 2, 3)
    assert [[name for name in line if name.startswith("drift/")] for line in lines] == [
        [],
        ["drift/perception", "drift/reasoning"],
    ] * 2
    assert [line["drift/reasoning"] for line in lines[1::2]] == [1.0, 1.0]
    assert all(0.2 < line["drift/perception"] < 0.8 for line in lines[1::2])
    assert not one.flat, "never before min_steps"


def test_a_row_seen_in_two_epochs_is_one_prompt():
    one = watched(stop=DriftStop(0, 4, 1, 0.0))
    assert not any(name.startswith("drift/") for line in play(one, 0, 0, 0, 0) for name in line), "six prompts in all"


def test_too_few_prompts_measure_nothing():
    one = watched(probe_every=1, stop=DriftStop(0, 1, 1, 0.0))
    (line,) = play(one, 0)
    assert [name for name in line if name.startswith(("drift/", "shortcuts/"))] == []
    assert not one.flat


# Probes ---------------------------------------------------------------------------------------------------------------


def probes(one, *steps):
    *before, last = play(one, *steps)
    assert not any(name.startswith("shortcuts/") for line in before for name in line)
    return {name.removeprefix("shortcuts/"): value for name, value in last.items() if name.startswith("shortcuts/")}


def test_length_and_format_are_held_against_the_discriminator():
    found = probes(watched(probe_every=6), *range(6))
    names = (
        "discriminator",
        "length",
        "length_suffices",
        "format",
        "format_suffices",
        "image_swapped",
        "image_swapped_suffices",
    )
    assert set(found) == {f"{name}/{part}" for name in names for part in ("perception", "reasoning")}
    # The teacher's reasoning is always longer, and only it has a number.
    assert found["length/reasoning"] == found["format/reasoning"] == 1
    assert found["length_suffices/perception"] == found["format_suffices/perception"] == 0


def test_a_shortcut_suffices_only_where_the_discriminator_can_tell_and_is_no_better():
    trained = learner(learning_rate=3e-3)
    for step in range(20, 40):
        trained.score_and_update(game(step))
    found = probes(watched(trained, probe_every=6), *range(6))
    assert found["discriminator/reasoning"] > 0.9
    assert found["length_suffices/reasoning"] == 1
    assert found["length_suffices/perception"] == 0, "neither the discriminator nor the length tells"


def test_a_discriminator_that_sees_nothing_is_not_shown_other_pictures():
    found = probes(watched(learner("text_only"), probe_every=6), *range(6))
    assert "length/reasoning" in found
    assert not any(name.startswith("image_swapped") for name in found)


def test_a_discriminator_of_text_alone_scores_the_same_beside_another_picture():
    # Zeroed picture features: what is left is the text, so every swapped score is the discriminator's own.
    one = learner()
    with torch.no_grad():
        for name, weight in one.discriminator.body.visual.named_parameters():
            if "merger" in name:
                weight.zero_()
    found = probes(watched(one, probe_every=6), *range(6))
    assert found["image_swapped/reasoning"] == found["discriminator/reasoning"]


# Continuing -----------------------------------------------------------------------------------------------------------


def test_a_continued_game_measures_what_an_unbroken_one_does(tmp_path):
    options = {"probe_every": 6, "stop": DriftStop(0, 4, 1, 1.0)}
    straight = watched(**options)
    lines = play(straight, *range(12))
    first = watched(**options)
    assert play(first, 0, 1, 2, 3, 4) == lines[:5]
    first.save(tmp_path)
    second = watched(**options)
    second.load(tmp_path)
    assert play(second, *range(5, 12)) == lines[5:]
    assert "drift/reasoning" in lines[7]
    assert "shortcuts/discriminator/reasoning" in lines[5]
    assert straight.flat
    assert second.flat


# Ending ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([0.9, 0.8, 0.7], False),  # still falling
        ([0.9, 0.7, 0.70], False),  # within patience of the last fall
        ([0.9, 0.7, 0.695, 0.70], True),  # less than delta below 0.7, twice
        ([0.9, 0.7, 0.95, 0.8], True),  # it rose
        ([0.9, 0.7, 0.71, 0.68], False),
        ([0.9, 0.9], False),  # too few to say
    ],
)
def test_flat_is_no_fall_below_the_lowest_by_more_than_delta_within_patience(values, flat):
    assert is_flat([{"a": value} for value in values], patience=2, delta=0.01) == flat


def test_training_goes_on_while_any_part_falls():
    measured = [{"a": 0.7, "b": value} for value in (0.9, 0.8, 0.7)]
    assert not is_flat(measured, patience=2, delta=0.01)
    assert is_flat([{"a": one["a"]} for one in measured], patience=2, delta=0.01)


def test_a_flat_game_ends_with_a_checkpoint_and_does_not_begin_again():
    one = watched(stop=DriftStop(min_steps=8, every=2, patience=1, delta=1.0))
    callback = StopWhenFlat(one)
    ended = []
    for step in range(8):
        play(one, step)
        control = TrainerControl()
        callback.on_step_end(None, TrainerState(global_step=step + 1), control)
        ended.append((control.should_training_stop, control.should_save, bool(callback.reason)))
    assert ended == [(False, False, False)] * 7 + [(True, True, True)]
    with pytest.raises(AlreadyTrainedError):
        callback.on_train_begin(None, TrainerState(global_step=8), TrainerControl())
