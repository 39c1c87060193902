"""The resolved recipe as data, and what makes two runs different."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_cli.recipes.identity import differences, run_folder, to_dict, to_yaml
from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.pipelines import PipelineRecipe, PipelineStep
from prism_cli.recipes.sources import parse_value
from prism_cli.recipes.stages import AlignRecipe


def changed(*overrides, stage="align", base=()):
    return differences(to_dict(load_recipe(stage, None, base)), to_dict(load_recipe(stage, None, [*base, *overrides])))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("stage", ["sft", "align", "rl", "eval"])
def test_the_yaml_of_a_recipe_loads_back_to_the_same_recipe(stage, tmp_path):
    overrides = [] if stage == "eval" else ["model.type=tiny", "response.answer=think", "trainer.report_to=wandb"]
    recipe = load_recipe(stage, None, overrides)
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(stage, tmp_path / "again.yaml") == recipe


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))))
def test_any_text_survives_the_yaml(text):
    recipe = AlignRecipe.model_validate({"response": {"instruction": text}})
    assert parse_value(to_yaml(recipe))["response"]["instruction"] == text


@pytest.mark.parametrize("text", ["1e-6", "no", "null", "3", "~", "a: b", "# x", "two\nlines", " edge "])
def test_text_that_looks_like_something_else_survives_the_yaml(text):
    recipe = AlignRecipe.model_validate({"response": {"instruction": text}})
    assert parse_value(to_yaml(recipe))["response"]["instruction"] == text


def test_the_dict_is_json_with_the_users_keys_and_all_defaults():
    values = to_dict(load_recipe("align", None, ["from=runs/sft"]))
    assert json.loads(json.dumps(values)) == values
    assert values["from"] == "runs/sft"
    assert "from_" not in values
    assert values["discriminator"]["warmup"]["pairs"] == 120000


def test_a_differing_key_is_named_with_both_values():
    assert changed("optimizer.learning_rate=2e-6", "response.instruction=null", base=["response.answer=think"]) == [
        "response.instruction: 'from parts' there, null now",
        "optimizer.learning_rate: 1e-06 there, 2e-06 now",
    ]


def test_another_type_is_one_difference_besides_its_keys():
    assert "teacher.type: 'openai' there, 'dataset' now" in changed("teacher.type=dataset")


def test_a_section_that_was_absent_is_one_line():
    assert changed("lora.rank=4", "trainer.top_p=0.5") == [
        "lora: null there, a section now",
        "trainer.top_p: absent there, 0.5 now",
    ]


def test_budgets_logging_and_addresses_are_no_difference():
    assert not changed(
        "output=elsewhere",
        "log_every=7",
        "checkpoint.keep=9",
        "teacher.endpoint=http://b",
        "teacher.concurrency=2",
        "teacher.max_calls=5",
        "teacher.api_key_env=KEY",
        "trainer.report_to=wandb",
    )


def test_more_steps_are_no_difference_but_fewer_are():
    assert not changed("max_steps=501")
    assert changed("max_steps=499") == ["max_steps: 500 there, 499 now"]
    assert changed("max_steps=null") == ["max_steps: 500 there, null now"]


def test_a_pipeline_leaves_what_is_set_in_a_step_to_the_steps_own_run():
    def pipeline(recipe, **values):
        return to_dict(PipelineRecipe(name="p", steps=(PipelineStep(stage="rl", recipe=recipe, set=values),)))

    old = pipeline("rl.yaml", max_steps=5, kl=0.0)
    assert not differences(old, pipeline("rl.yaml", max_steps=4, kl=0.1))
    assert not differences(old, pipeline("rl.yaml"))
    assert differences(old, pipeline("other.yaml", kl=0.1)) == ["steps.0.recipe: 'rl.yaml' there, 'other.yaml' now"]


def test_a_run_lies_under_runs_unless_output_says_otherwise():
    assert run_folder("rl", load_recipe("rl")) == Path("runs/rl")
    assert run_folder("rl", load_recipe("rl", None, ["output=x/y"])) == Path("x/y")
    assert run_folder("run", load_recipe("run", "tiny")) == Path("runs/tiny")
