"""The `trainer` section: names and types of TRL's options, read without importing TRL."""

import dataclasses
import re
import subprocess
import sys

import pytest

from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.stages import RECIPES
from prism_cli.recipes.trl_options import CONFIGS, FIXED, OWNED, option_problems, option_types

# Names of an older transformers, refused with the recipe's key rather than as unknown.
FORMER_NAMES = {"warmup_ratio"}


def problems(stage, **options):
    return dict(option_problems(stage, options))


@pytest.mark.parametrize("config", ["SFTConfig", "GRPOConfig"])
def test_the_options_are_those_of_the_real_config(config):
    import trl

    real = {field.name for field in dataclasses.fields(getattr(trl, config)) if field.init}
    assert set(option_types(config)) == real


@pytest.mark.parametrize("stage", ["sft", "align", "rl"])
def test_every_owned_option_exists_and_names_a_key_that_exists(stage):
    known = option_types(CONFIGS[stage])
    assert set(OWNED[stage]) - FORMER_NAMES <= set(known)
    for text in OWNED[stage].values():
        for key in re.sub(r" \(.*\)$", "", text).replace(" and ", ", ").split(", "):
            section = RECIPES[stage]
            first, _, rest = key.partition(".")
            variants = sections_in(section.model_fields[first].annotation)
            assert not rest or any(rest in v.model_fields for v in variants), key


def sections_in(annotation):
    """The recipe sections among what a field may hold."""
    inner = getattr(annotation, "__args__", ())
    return [annotation] if hasattr(annotation, "model_fields") else [one for part in inner for one in sections_in(part)]


def test_every_fixed_option_exists():
    assert set(FIXED) <= option_types("SFTConfig").keys() | option_types("GRPOConfig").keys()


def test_an_owned_option_is_refused_with_the_recipes_key():
    assert problems("rl", epsilon=0.1)["epsilon"].endswith("use the recipe's own algorithm.clip_low")
    assert problems("align", epsilon=0.1)["epsilon"].endswith("use the recipe's own clip")
    assert problems("sft", max_length=9)["max_length"].endswith("use the recipe's own max_tokens")
    assert "the stage sets this" in problems("sft", save_only_model=True)["save_only_model"]


def test_an_unknown_option_gets_the_nearest_name_that_is_free():
    assert problems("rl", top_kk=1) == {"top_kk": "GRPOConfig has no such option (did you mean top_k?)"}
    assert "use_vllm" not in problems("rl", use_vlm=True)["use_vlm"]
    assert "learning_rate" not in problems("rl", learning_rat=1)["learning_rat"]
    assert problems("sft", top_entropy_quantile=1.0)["top_entropy_quantile"].startswith("SFTConfig has no such option")


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("top_p", "0.3", "expected a number, found text '0.3' (take the quotes off)"),
        ("top_p", True, "expected a number, found true"),
        ("top_k", 1.5, "expected a whole number, found the number 1.5"),
        ("log_completions", "yes", "expected true or false, found text 'yes'"),
        ("log_completions", 1, "expected true or false, found the number 1"),
        ("ddp_backend", 3, "expected text or null, found the number 3"),
        ("top_p", None, "expected a number, found nothing (null)"),
        ("include_for_metrics", "x", "expected a list, found text 'x'"),
    ],
)
def test_a_wrong_type_is_refused(option, value, expected):
    assert problems("rl", **{option: value}) == {option: expected}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("top_p", 1),
        ("min_p", None),
        ("optim", "adamw_torch"),
        ("report_to", ["wandb"]),
        ("gradient_checkpointing_kwargs", {"use_reentrant": False}),
        ("deepspeed", "zero2.json"),
        ("parallelism_config", {"tp_size": 2}),
        ("trackio_static_space_id", False),
    ],
)
def test_a_right_type_passes(option, value):
    assert problems("rl", **{option: value}) == {}


def test_options_pass_through_the_recipe_unchanged():
    recipe = load_recipe("rl", "tiny", ["trainer.log_completions=true", "trainer.optim=adamw_torch"])
    assert recipe.trainer == {"log_completions": True, "optim": "adamw_torch"}


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("hub_token", "hf_secret", "hf auth login"),
        ("use_vllm", True, "generation.type names the backend"),
    ],
)
def test_what_no_recipe_may_change_is_refused_with_the_reason(option, value, reason):
    refused = problems("rl", **{option: value})[option]
    assert refused.startswith("the stage sets this: ")
    assert reason in refused
    assert str(value) not in refused


def test_rl_alone_may_take_several_updates_a_batch():
    assert problems("rl", num_iterations=2) == {}
    assert "one update each a batch" in problems("align", num_iterations=2)["num_iterations"]


def test_checking_options_imports_neither_trl_nor_torch():
    code = (
        "import sys\n"
        "from prism_cli.recipes.load import load_recipe\n"
        "load_recipe('rl', 'tiny', ['trainer.log_completions=true'])\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
