"""The pairs of a warm-up: who is asked for them, what they come to, and what they can't be made of."""

import copy
import json

import pytest

from prism_cli.assembly.data import load_data
from prism_cli.assembly.discriminator import discriminator_settings
from prism_cli.assembly.warmup_pairs import PairSampling, sampled_pairs
from prism_cli.discriminator.build import discriminator_for, refuse_unfit
from prism_cli.discriminator.reader import PartReader
from prism_cli.discriminator.warmup import Account, warm_up
from prism_cli.errors import PrismError, RecipeError
from prism_cli.evaluation.backend import TRANSFORMERS
from prism_cli.models import load_policy
from prism_cli.recipes.alignment import WarmupSection
from prism_cli.recipes.sections import WorldData
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.worlds import world
from tests.tiny import tiny_policy

# 4 rows in 12 pairs, so each row is in three.
RECIPE = AlignRecipe.model_validate(
    {
        "max_response_tokens": 48,
        "micro_batch": 12,
        "discriminator": {"type": "dense", "warmup": {"pairs": 8, "held_out": 4}},
    }
)


@pytest.fixture(scope="module")
def policy(trained):
    return load_policy(trained / "model")


@pytest.fixture(scope="module")
def rows(policy):
    return load_data(WorldData(type="world", split="train", size=4, seed=3), policy.settings)


class Desk:
    """A teacher's desk that remembers what it was asked."""

    def __init__(self, policy, rows, malformed=False):
        oracle, render = world("shapes").oracle, policy.grammar.render
        self.texts = {
            row["id"]: "no" if malformed else render(oracle(row["prompt"][-1]["content"], row["images"][0]))
            for row in rows
        }
        self.prefetched, self.asked = [], []

    def prefetch(self, rows):
        self.prefetched += [row["id"] for row in rows]

    def answers(self, rows):
        self.asked += [row["id"] for row in rows]
        return [self.texts[row["id"]] for row in rows]


def pairs(policy, rows, desk, path):
    reader = PartReader(policy.processor, policy.grammar)
    sampling = PairSampling(TRANSFORMERS, max_tokens=48, batch_size=16, temperature=1.0, path=path)
    return sampled_pairs(discriminator_settings(RECIPE).warmup, sampling, policy, rows, desk, reader)


def test_a_row_in_several_pairs_is_asked_once_and_paired_with_its_own_answer(policy, rows, tmp_path):
    desk = Desk(policy, rows)
    made = pairs(policy, rows, desk, tmp_path / "samples.jsonl")
    assert desk.prefetched == desk.asked == rows["id"]
    assert made.rows == [0, 1, 2, 3] * 3
    own = [PartReader(policy.processor, policy.grammar).text(desk.texts[id]) for id in rows["id"]]
    assert made.teacher == own * 3


def test_without_a_well_formed_side_the_malformed_one_is_named(policy, rows, tmp_path):
    with pytest.raises(PrismError, match=r"of 12 pairs none .* malformed are 12 teacher answers") as caught:
        pairs(policy, rows, Desk(policy, rows, malformed=True), tmp_path / "a.jsonl")
    assert "the teacher's side" in caught.value.hint
    (tmp_path / "b.jsonl").write_text(f"{json.dumps([])}\n" * 12)
    with pytest.raises(PrismError, match="are 0 teacher answers and 12 policy samples") as caught:
        pairs(policy, rows, Desk(policy, rows), tmp_path / "b.jsonl")
    assert "the policy's side" in caught.value.hint


def based_on(path):
    return discriminator_settings(RECIPE).start._replace(base=str(path))


def test_a_base_with_another_vocabulary_is_refused(policy, tmp_path):
    model, processor = tiny_policy()
    copy.deepcopy(model).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="has another vocabulary than the policy") as caught:
        refuse_unfit(based_on(tmp_path), policy)
    assert "same family" in caught.value.hint


def test_a_base_with_the_policys_vocabulary_is_taken(policy, trained):
    start = based_on(trained / "model")
    refuse_unfit(start, policy)
    made = discriminator_for(start, policy, ("perception", "reasoning"))
    own = policy.model.model.state_dict()
    assert all(weight.equal(own[name]) for name, weight in made.body.state_dict().items())


def test_a_base_of_another_family_is_refused(policy, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(RecipeError, match="is a qwen2_5_vl model") as caught:
        refuse_unfit(based_on(tmp_path), policy)
    assert "Qwen3-VL-2B" in caught.value.hint


def test_a_second_epoch_sees_the_same_pairs_again(policy, rows, tmp_path):
    warmup = {"pairs": 8, "held_out": 4, "batch_size": 4, "epochs": 2, "learning_rate": 1e-12, "measure_every": 4}
    section = RECIPE.discriminator.model_copy(update={"warmup": WarmupSection.model_validate(warmup), "dropout": 0.0})
    settings = discriminator_settings(RECIPE.model_copy(update={"discriminator": section}))
    made = pairs(policy, rows, Desk(policy, rows), tmp_path / "samples.jsonl")
    reader = PartReader(policy.processor, policy.grammar)
    cold = discriminator_for(settings.start, policy, ("perception", "reasoning"))
    _, account = warm_up(cold, settings.warmup, made, reader, tmp_path)
    assert account == Account(pairs=12, steps=4, stopped=None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, second, again, last = (line["discriminator/loss/reasoning"] for line in lines)
    assert (again, last) == pytest.approx((first, second), rel=1e-5)
    assert first != pytest.approx(second, rel=1e-3)
