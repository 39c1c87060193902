"""Warnings over a history of metrics, and who gives them; which experts read which part."""

import io
import json

import pytest
import torch
from rich.console import Console
from tests.unit.test_discriminator_model import READOUT, discriminator, ids, picture, prompt
from transformers import TrainerControl, TrainerState, TrainingArguments

from prism_cli.discriminator.health import HealthWarning, blind, collapsed_router, saturated
from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.router import router_loads
from prism_cli.discriminator.settings import LearnerSettings
from prism_cli.trainers.health import HealthWatch, align_detectors, discriminator_detectors, rl_detectors
from prism_cli.trainers.rollout_health import (
    CLIPPED_RESPONSES,
    CLIPPED_TOKENS,
    clipped_ratios,
    cut_responses,
    entropy_collapse,
    far_from_start,
    format_collapse,
    format_milked,
    generator_gap,
    length_drift,
    nothing_to_learn,
    unscored,
)

ACCURACY = "discriminator/accuracy/perception"


def history(name, values, first=1, every=1):
    return [{"step": first + every * i, name: value} for i, value in enumerate(values)]


def kind(warning):
    return warning and warning.kind


# Detectors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ([0.96] * 20, True),
        ([0.96] * 19, False),  # not long enough
        ([0.5] * 10 + [0.96] * 20, True),
        ([0.96] * 19 + [0.95], False),  # one step at the edge
        ([], False),
    ],
)
def test_a_discriminator_that_always_knows_for_twenty_steps_is_saturated(values, warned):
    found = saturated(history(ACCURACY, values), "perception")
    assert kind(found) == ("saturated/perception" if warned else None)
    assert saturated(history(ACCURACY, values), "reasoning") is None


def test_steps_are_counted_and_not_lines():
    assert saturated(history(ACCURACY, [0.99, 0.99, 0.99], every=10), "perception") is not None
    assert saturated(history(ACCURACY, [0.99, 0.99], every=10), "perception") is None


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ([0.5, 0.54] * 10, True),
        ([0.5, 0.54] * 9, False),
        ([0.5, 0.62] * 10, False),  # 0.56 on average
        ([0.7] * 20 + [0.5] * 200, False),  # that is what success looks like
        ([0.5] * 20 + [0.9] * 20, True),
    ],
)
def test_only_a_discriminator_that_never_knew_is_blind(values, warned):
    found = blind(history(ACCURACY, values), "perception")
    assert kind(found) == ("blind/perception" if warned else None)
    assert found is None or f"only {sum(values[:20]) / 20:.0%}" in found.cause


def test_an_expert_that_takes_all_of_a_part_is_a_collapsed_router():
    lines = [
        {f"discriminator/router_load/{part}/{e}": load for part in ("a", "b") for e, load in enumerate((0.91, 0.5))}
        for _ in range(20)
    ]
    lines = [{"step": i + 1, **line, "discriminator/router_load/b/0": 0.9} for i, line in enumerate(lines)]
    assert "expert 0" in collapsed_router(lines, "a").cause
    assert collapsed_router(lines, "b") is None
    assert collapsed_router(lines[:-1], "a") is None


@pytest.mark.parametrize(
    ("end", "cause"), [(151, "went from 100 to 151"), (150, None), (67, None), (66, "went from 100 to 66")]
)
def test_a_mean_length_far_from_the_start_is_a_drift(end, cause):
    found = length_drift(history("completions/mean_length", [100] * 5 + [end] * 5))
    assert (found and cause in found.cause) == (None if cause is None else True)


def test_one_odd_batch_is_no_length_drift():
    assert length_drift(history("completions/mean_length", [100] * 9 + [300])) is None
    assert length_drift(history("completions/mean_length", [100] * 4 + [300] * 5)) is None, "five steps to start from"


def test_mostly_malformed_responses_are_a_format_collapse():
    name = "responses/malformed_fraction"
    assert "52%" in format_collapse(history(name, [0.0] * 5 + [0.52] * 5)).cause
    assert format_collapse(history(name, [0.9] * 5 + [0.5] * 5)) is None
    assert format_collapse(history(name, [0.9] * 4)) is None


@pytest.mark.parametrize(
    ("detector", "name", "limit", "said"),
    [
        (cut_responses, "completions/clipped_ratio", 0.2, "26% of the responses are cut"),
        (far_from_start, "kl", 0.5, "is 0.56 nats a token from where it started"),
        (unscored, "rewards/unscored_fraction", 0.2, "26% of the responses could not be scored"),
        (generator_gap, "sampling/sampling_logp_difference/mean", 0.05, "vLLM and the trainer differ by 0.11 nats"),
    ],
)
def test_five_steps_above_a_limit_are_a_warning_and_one_odd_step_is_none(detector, name, limit, said):
    assert detector(history(name, [0.0] * 10 + [limit] * 5)) is None
    assert detector(history(name, [0.0] * 20 + [4 * limit] + [0.0])) is None, "0.8 of the limit on average"
    assert detector(history(name, [limit + 0.06] * 4)) is None, "too young"
    assert said in detector(history(name, [0.0] * 10 + [limit + 0.06] * 5)).cause
    assert detector(history("loss", [0.0] * 30)) is None, "what was not measured gives no warning"


@pytest.mark.parametrize(
    ("values", "limit", "warned"),
    [
        ([0.0, 0.21] * 10, CLIPPED_TOKENS, True),  # of each batch the second update
        ([0.0, 0.19] * 10, CLIPPED_TOKENS, False),
        ([0.0, 0.21] * 9, CLIPPED_TOKENS, False),  # too young
        ([0.0] * 20, CLIPPED_TOKENS, False),  # one update a batch
        ([0.0, 0.75] * 10, CLIPPED_RESPONSES, False),  # GSPO as it should be
    ],
)
def test_later_updates_that_are_mostly_clipped_are_a_warning(values, limit, warned):
    found = clipped_ratios(history("clip_ratio/region_mean", values), limit)
    assert kind(found) == ("clipped_ratios" if warned else None)
    assert found is None or "21% of the ratios" in found.cause


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5] * 5 + [0.09] * 5, "went from 0.500 to 0.090"),  # under a fifth
        ([0.5] * 5 + [0.11] * 5, None),
        ([0.16] * 5 + [0.058] * 100, None),  # where runs that learn well end
        ([0.5] * 9 + [0.0], None),  # one odd batch
        ([0.009] * 20, "is 0.009 nats a token: rollouts of a prompt are nearly all the same"),
        ([0.009] * 19, None),
        ([0.011] * 20, None),
    ],
)
def test_an_entropy_that_falls_to_a_fifth_or_to_nothing_is_a_collapse(values, said):
    found = entropy_collapse(history("entropy", values))
    assert (found and said in found.cause) == (None if said is None else True)


def rewarded(steps=20, **values):
    """Steps of RL with the same values; a pair rises evenly from its first value to its second."""
    lines = []
    for i in range(steps):
        at = {name: v if isinstance(v, float) else v[0] + (v[1] - v[0]) * i / (steps - 1) for name, v in values.items()}
        named = {"frac_reward_zero_std" if name == "equal" else f"rewards/{name}/mean": v for name, v in at.items()}
        lines.append({"step": i + 1, **named})
    return lines


def test_groups_whose_rewards_are_all_equal_teach_nothing():
    assert nothing_to_learn(rewarded(equal=0.74)) is None
    assert nothing_to_learn(rewarded(19, equal=0.9)) is None
    solved, failed = (nothing_to_learn(rewarded(equal=0.76, accuracy=accuracy)) for accuracy in (0.9, 0.1))
    assert "in 76% of the groups of the last 20 steps all rewards were equal (accuracy 90%)" in solved.cause
    assert "harder prompts" in solved.cure
    assert "sometimes solves" in failed.cure
    assert all("algorithm.type=dapo" in warning.cure for warning in (solved, failed))


def test_dynamic_sampling_is_judged_by_what_it_drops():
    def steps(kept, solved, failed, unused=0):
        names = {"kept": kept, "dropped_solved": solved, "dropped_failed": failed, "unused": unused, "rounds": 3}
        # What is trained on has no equal rewards; TRL's share of all that was looked at is no measure of it.
        line = {f"sampling/{name}": value for name, value in names.items()} | {"frac_reward_zero_std": 0.9}
        return [{"step": i, **line} for i in range(1, 21)]

    assert nothing_to_learn(steps(12, 20, 15)) is None  # 35 of 47
    warning = nothing_to_learn(steps(12, 20, 16))  # 36 of 48
    assert "in 75% of the groups" in warning.cause
    assert "dapo" not in warning.cure
    assert nothing_to_learn(steps(12, 20, 16, unused=1)) is None
    assert nothing_to_learn(steps(0, 0, 0)) is None
    # The second update of a batch rolls nothing out: its line has no word on sampling.
    assert "dapo" not in nothing_to_learn([*steps(12, 20, 16), {"step": 21}]).cure


@pytest.mark.parametrize(
    ("form", "right", "steps", "warned"),
    [
        ((0.5, 1.0), 0.3, 80, True),
        ((0.5, 1.0), (0.3, 0.4), 80, False),  # what becomes well-formed is right as often as the rest
        (0.99, 0.3, 80, False),
        ((0.9, 0.99), 0.3, 80, False),  # less than a tenth
        ((0.5, 1.0), (0.3, 0.1), 80, True),
        ((0.5, 1.0), 0.3, 59, False),
    ],
)
def test_a_policy_that_gains_in_form_alone_milks_the_format_reward(form, right, steps, warned):
    found = format_milked(rewarded(steps, format=form, accuracy=right))
    assert kind(found) == ("format_milked" if warned else None)


def test_a_run_that_learns_gives_no_warning():
    """The course of real runs on the tiny world: accuracy 0.4 to 0.85 while half of the groups become all right."""
    ends = {
        "entropy": (0.162, 0.057),
        "frac_reward_zero_std": (0.0, 0.62),
        "rewards/accuracy/mean": (0.4, 0.87),
        "rewards/format/mean": (0.99, 0.98),
        "responses/malformed_fraction": (0.01, 0.02),
        "completions/mean_length": (32.0, 36.0),
        "completions/clipped_ratio": (0.0, 0.005),
        "clip_ratio/region_mean": (0.0, 0.0),
        "kl": (0.0, 0.2),
    }
    steps = [
        {"step": i + 1, **{name: first + (last - first) * i / 159 for name, (first, last) in ends.items()}}
        for i in range(160)
    ]
    detectors = [*rl_detectors(by_sequence=False), *align_detectors(["perception", "reasoning"])]
    given = {kind(detector(steps[:length])) for length in range(1, 161) for detector in detectors}
    assert given == {None}


# Who warns ------------------------------------------------------------------------------------------------------------


class Watched:
    """A HealthWatch of the discriminator's detectors, fed by hand."""

    def __init__(self, folder):
        self.folder, self.shown = folder, io.StringIO()
        self.arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
        self.watch = HealthWatch(folder, discriminator_detectors(["perception"]), Console(file=self.shown, width=300))

    def begin(self, step=0):
        self.watch.on_train_begin(self.arguments, TrainerState(global_step=step), TrainerControl())

    def log(self, step, **logs):
        self.watch.on_log(self.arguments, TrainerState(global_step=step), TrainerControl(), logs=logs)

    def warnings(self):
        path = self.folder / "warnings.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None


def saturate(watched, first, last):
    for step in range(first, last + 1):
        watched.log(step, loss=0.1, **{ACCURACY: 0.99})


def test_a_warning_is_shown_and_written_once(tmp_path):
    watched = Watched(tmp_path)
    watched.begin()
    saturate(watched, 1, 30)
    assert [(line["step"], line["kind"]) for line in watched.warnings()] == [(20, "saturated/perception")]
    assert set(watched.warnings()[0]) == {"step", *HealthWarning._fields}
    assert watched.shown.getvalue().count("warning: step 20:") == 1
    assert "discriminator.learning_rate" in watched.shown.getvalue()


def test_a_healthy_run_leaves_no_file(tmp_path):
    watched = Watched(tmp_path)
    watched.begin()
    for step in range(1, 31):
        watched.log(step, loss=0.1, **{ACCURACY: 0.7})
    assert watched.warnings() is None


def test_a_continued_run_warns_where_one_that_was_never_stopped_would(tmp_path):
    # Stopped at step 25, continued from the checkpoint of step 15: the warning of step 20 is given again.
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": 0.1, ACCURACY: 0.99}) + "\n" for step in range(1, 16))
        + json.dumps({"step": 15, "eval/loss": 1, ACCURACY: 0.1})
        + "\n"
    )
    (tmp_path / "warnings.jsonl").write_text('{"step": 20, "kind": "saturated/perception"}\n')
    watched = Watched(tmp_path)
    watched.begin(15)
    assert watched.warnings() is None
    saturate(watched, 16, 30)
    assert [line["step"] for line in watched.warnings()] == [20]


def test_a_warning_before_the_checkpoint_is_kept_and_not_repeated(tmp_path):
    (tmp_path / "warnings.jsonl").write_text('{"step": 20, "kind": "saturated/perception"}\n')
    watched = Watched(tmp_path)
    watched.begin(25)
    saturate(watched, 26, 60)
    assert [line["step"] for line in watched.warnings()] == [20]


def test_held_out_metrics_are_not_the_runs(tmp_path):
    watched = Watched(tmp_path)
    watched.begin()
    for step in range(1, 31):
        watched.log(step, eval_loss=0.1, **{ACCURACY: 0.99})
    assert watched.warnings() is None


@pytest.mark.parametrize("before", [0, 60])
def test_a_reward_that_no_response_got_is_no_number_to_warn_of(tmp_path, before):
    # An LLM judge that fails for a whole batch leaves NaN; accuracy rises with the form.
    steps = [
        {"step": i, "loss": 0.1, "rewards/format/mean": 0.5 + i / 200, "rewards/accuracy/mean": 0.2 + i / 200}
        for i in range(1, 81)
    ]
    for i in (5, 55, 75):
        steps[i]["rewards/accuracy/mean"] = float("nan")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps[:before]))
    watched = Watched(tmp_path)
    watched.watch.detectors = [format_milked]
    watched.begin(before)
    for line in steps[before:]:
        watched.log(**line)
    assert watched.warnings() is None


# Routers --------------------------------------------------------------------------------------------------------------


def chosen_alone(scorer, prompts, rows):
    """(tokens, layers, top_k) experts of each part's tokens, from the model's own forward over one sequence."""
    found = []
    for p, part in rows:
        row = torch.tensor([[*prompts[p].input_ids, *part, READOUT]])
        scorer.body.rope_deltas = None
        with torch.no_grad():
            output = scorer.body(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                mm_token_type_ids=(row == scorer.body.config.image_token_id).int(),
                pixel_values=prompts[p].pixel_values,
                image_grid_thw=prompts[p].image_grid_thw,
                output_router_logits=True,
            )
        layers = [logits.view(-1, logits.shape[-1])[-len(part) - 1 :] for logits in output.router_logits]
        found.append(torch.stack([logits.topk(2).indices for logits in layers], 1))
    return found


@pytest.mark.parametrize("micro_batch", [16, 1])
def test_router_loads_are_the_share_of_a_parts_tokens_that_visit_an_expert(micro_batch):
    scorer = discriminator("moe")
    prompts = [prompt(picture("red")), prompt(picture("blue"))]
    said = [
        {"perception": ids(a), "reasoning": ids(b)}
        for a, b in (("a1 red square", "so 4"), ("b2 blue circle , a1 empty", "2 plus 2 is 4"), ("c1 green", "so 7"))
    ]
    batch = Comparisons(prompts, [said[0], said[2]], [said[1], said[2], said[0]], [0, 0, 1])
    learner = DiscriminatorLearner(scorer, LearnerSettings(micro_batch=micro_batch))
    with router_loads(scorer) as loads:
        learner.score(batch)
    metrics = loads.metrics()
    read = [(0, said[0]), (0, said[1]), (0, said[2]), (1, said[2]), (1, said[0])]
    for part in ("perception", "reasoning"):
        chosen = torch.cat(chosen_alone(scorer, prompts, [(p, parts[part]) for p, parts in read]))
        tokens, layers, _ = chosen.shape
        for expert in range(4):
            expected = int((chosen == expert).sum()) / (tokens * layers)
            assert metrics[f"discriminator/router_load/{part}/{expert}"] == pytest.approx(expected)
        assert sum(metrics[f"discriminator/router_load/{part}/{e}"] for e in range(4)) == pytest.approx(2)


def test_a_dense_discriminator_has_no_router_and_listening_ends():
    dense, moe = discriminator("dense"), discriminator("moe")
    for scorer in (dense, moe):
        rows = scorer.inputs([prompt(picture("red"))], [(0, ids("a1 red")), (0, ids("so 4"))])
        with router_loads(scorer) as loads, torch.no_grad():
            scorer(rows)
        before = loads.metrics()
        with torch.no_grad():
            scorer(rows)
        assert loads.metrics() == before
        assert bool(before) == (scorer is moe)
