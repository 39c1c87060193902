"""The `trainer` section: names and types of TRL's options, read without importing TRL."""

import dataclasses
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
    assert set(FIXED) <= set(known)
    for text in OWNED[stage].values():
        for key in text.replace(" and ", ", ").split(", "):
            section = RECIPES[stage]
            first, _, rest = key.partition(".")
            annotation = section.model_fields[first].annotation
            variants = [v for v in getattr(annotation, "__args__", (annotation,)) if hasattr(v, "model_fields")]
            assert not rest or any(rest in v.model_fields for v in variants), key


def test_an_owned_option_is_refused_with_the_recipes_key():
    assert problems("rl", epsilon=0.1)["epsilon"].endswith("use the recipe's own algorithm.clip_low")
    assert problems("align", epsilon=0.1)["epsilon"].endswith("use the recipe's own clip")
    assert problems("sft", max_length=9)["max_length"].endswith("use the recipe's own max_tokens")
    assert "the stage sets this" in problems("sft", save_only_model=True)["save_only_model"]


def test_an_unknown_option_gets_the_nearest_name_that_is_free():
    assert problems("rl", use_vlm=True) == {"use_vlm": "GRPOConfig has no such option (did you mean use_vllm?)"}
    assert "learning_rate" not in problems("rl", learning_rat=1)["learning_rat"]
    assert problems("sft", use_vllm=True) == {"use_vllm": "SFTConfig has no such option"}


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("top_p", "0.3", "expected a number, found text '0.3' (take the quotes off)"),
        ("top_p", True, "expected a number, found true"),
        ("top_k", 1.5, "expected a whole number, found the number 1.5"),
        ("use_vllm", "yes", "expected true or false, found text 'yes'"),
        ("use_vllm", 1, "expected true or false, found the number 1"),
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
    recipe = load_recipe("rl", "tiny", ["trainer.use_vllm=true", "trainer.vllm_mode=colocate"])
    assert recipe.trainer == {"use_vllm": True, "vllm_mode": "colocate"}


def test_checking_options_imports_neither_trl_nor_torch():
    code = (
        "import sys\n"
        "from prism_cli.recipes.load import load_recipe\n"
        "load_recipe('rl', 'tiny', ['trainer.use_vllm=true'])\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
