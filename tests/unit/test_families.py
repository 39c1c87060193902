"""Models that are no Qwen3-VL: what is refused before anything is loaded, and what is made to fit."""

import json
import re
from types import SimpleNamespace

import pytest

from prism_cli.assembly.checks import check_start, check_training
from prism_cli.errors import RecipeError
from prism_cli.recipes.load import load_recipe


@pytest.fixture
def gemma(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {"hidden_size": 64}}))
    return str(tmp_path)


@pytest.mark.parametrize(
    "section", [[], ["discriminator.base=Qwen/Qwen3-VL-2B-Instruct"], ["discriminator.type=dense"]]
)
def test_a_policy_whose_tokens_no_discriminator_reads_is_not_aligned(gemma, section):
    recipe = load_recipe("align", None, [f"model.path={gemma}", *section])
    with pytest.raises(RecipeError, match="is a gemma3 model, and no discriminator reads its tokens") as refused:
        check_start(recipe, "align", pending=False)
    assert "`prism sft` and `prism rl` train this one" in refused.value.hint


def test_a_discriminator_is_not_made_from_another_family(gemma):
    recipe = load_recipe("align", None, ["model.path=Qwen/Qwen3-VL-4B-Instruct", f"discriminator.base={gemma}"])
    with pytest.raises(RecipeError, match=r"no discriminator can be made from .* a gemma3 model"):
        check_start(recipe, "align", pending=False)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_other_families_are_trained(gemma, stage):
    assert check_start(load_recipe(stage, None, [f"model.path={gemma}"]), stage, pending=False)


def test_a_model_whose_config_is_not_here_is_not_guessed_at():
    recipe = load_recipe("align", None, ["model.path=Some/Model"])
    assert check_start(recipe, "align", pending=False) == [("starts from", "Some/Model")]


def test_weights_in_four_bits_are_not_sharded():
    recipe = load_recipe("rl", "qwen3_vl_4b", ["lora={bits: 4}", "launch.zero=3"])
    with pytest.raises(RecipeError, match=r"lora\.bits holds them in 4 bits") as refused:
        check_training(recipe)
    assert "launch.zero=2" in refused.value.hint
    check_training(load_recipe("rl", "qwen3_vl_4b", ["lora={bits: 4}", "launch.zero=2"]))


def test_pictures_of_a_family_with_one_size_keep_it():
    from transformers import Gemma3ImageProcessor

    from prism_cli.models import set_pixel_budget

    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    assert not set_pixel_budget(SimpleNamespace(image_processor=images), 65536, 1048576)
    assert (images.size["height"], images.size["width"]) == (56, 56)


def test_placeholders_are_found_by_the_names_processors_give_them():
    from prism_cli.models import placeholder_ids

    words = {"<image_soft_token>": 5, "<start_of_image>": 6, "red": 7}
    tokenizer = SimpleNamespace(get_vocab=lambda: words, boi_token="<start_of_image>")
    assert placeholder_ids(SimpleNamespace(tokenizer=tokenizer, image_token="<image_soft_token>")) == [5, 6]


@pytest.mark.parametrize("tower", ["language_model", "text_model"])
def test_adapters_find_the_language_model_by_either_name(tower):
    from prism_cli.assembly.policy import LANGUAGE_LAYERS

    assert re.fullmatch(LANGUAGE_LAYERS, f"model.{tower}.layers.0.self_attn.q_proj")
    assert not re.fullmatch(LANGUAGE_LAYERS, "model.vision_model.encoder.layers.0.self_attn.q_proj")


def test_every_model_type_of_the_table_is_one_that_transformers_has():
    from transformers import CONFIG_MAPPING

    from prism_cli.model_configs.families import FAMILIES, Family, family

    assert set(FAMILIES) <= set(CONFIG_MAPPING)
    assert family("gemma3") == family(None) == Family()
