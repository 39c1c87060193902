import copy
import json

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_policy

from prism_cli.assembly.policy import start_policy
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.evaluation.sampling import encode_prompts
from prism_cli.models import (
    PLACEHOLDER_TOKENS,
    Policy,
    load_policy,
    load_pretrained,
    multimodal,
    placeholder_ids,
    set_pixel_budget,
)
from prism_cli.recipes.load import load_recipe
from prism_cli.responses import Grammar, Part

GRAMMAR = Grammar({"perception": Part(("caption",), 0.25), "reasoning": Part(("think", "answer"), 0.75)})


@pytest.fixture
def policy():
    model, processor = tiny_policy()
    return Policy(model, copy.deepcopy(processor), GRAMMAR, "Answer in form .")


def inputs(processor, size=(48, 48)):
    turns = [{"role": "user", "content": "what is at b2 ?"}]
    return encode_prompts(processor, [multimodal(turns, [Image.new("RGB", size, "red")])])


def test_attention_is_never_cudnns_which_plans_each_new_length_for_a_second(policy):
    torch.backends.cuda.enable_cudnn_sdp(True)
    policy.with_model(policy.model)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_run_is_continued_with_the_attention_of_the_recipe(policy, tmp_path):
    policy.save(tmp_path / "run/model")
    (tmp_path / "run/run.json").write_text(
        json.dumps({"stage": "sft", "status": "finished", "recipe": {}, "finished": "now"})
    )
    for attention in ("sdpa", "eager"):
        recipe = load_recipe("rl", "tiny", [f"from={tmp_path / 'run'}", f"attention={attention}"])
        assert start_policy(recipe).model.config._attn_implementation == attention


def test_an_attention_that_is_not_installed_is_refused_with_the_cure(policy, tmp_path):
    policy.save(tmp_path / "model")
    with pytest.raises(RecipeError, match="attention flash_attention_2 can't be had here") as caught:
        load_policy(tmp_path / "model", attention="flash_attention_2")
    assert "leave `attention` out" in caught.value.hint


def test_a_saved_policy_comes_back_whole(policy, tmp_path):
    policy.save(tmp_path / "model")
    again = load_policy(tmp_path / "model")
    assert (again.grammar, again.instruction) == (policy.grammar, policy.instruction)
    assert again.processor.tokenizer.padding_side == "left"
    with torch.no_grad():
        assert torch.equal(
            again.model.eval()(**inputs(again.processor)).logits, policy.model(**inputs(policy.processor)).logits
        )


def test_the_pixel_budget_travels_with_the_policy(policy, tmp_path):
    before = inputs(policy.processor, (96, 96))["image_grid_thw"].tolist()
    set_pixel_budget(policy.processor, 32 * 32, 32 * 32)
    policy.save(tmp_path / "model")
    after = inputs(load_policy(tmp_path / "model").processor, (96, 96))["image_grid_thw"].tolist()
    # Patches of 8 × 8 pixels: 48 × 48 pixels before, 32 × 32 after.
    assert (before, after) == ([[1, 6, 6]], [[1, 4, 4]])


def test_no_instruction_stays_no_instruction(policy, tmp_path):
    Policy(policy.model, policy.processor, GRAMMAR, None).save(tmp_path / "model")
    assert load_policy(tmp_path / "model").instruction is None


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("{")])
def test_a_model_without_response_settings_is_refused(policy, tmp_path, damage):
    policy.save(tmp_path / "model")
    damage(tmp_path / "model/response.json")
    with pytest.raises(CheckpointError, match=r"response\.json can't be read") as caught:
        load_policy(tmp_path / "model")
    assert "--from" in caught.value.hint


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(RecipeError, match="can't load a vision-language model") as caught:
        load_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(policy, tmp_path):
    policy.save(tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(b"cut short")
    with pytest.raises(RecipeError, match="can't load a vision-language model"):
        load_pretrained(str(tmp_path / "model"))


def test_every_placeholder_is_known(policy):
    assert policy.processor.tokenizer.convert_ids_to_tokens(placeholder_ids(policy.processor)) == list(
        PLACEHOLDER_TOKENS
    )


def test_a_small_model_keeps_to_one_thread(policy):
    torch.set_num_threads(2)
    Policy(policy.model, policy.processor, GRAMMAR, None)
    assert torch.get_num_threads() == 1


def test_a_tiny_policy_sees_its_picture(policy):
    with torch.no_grad():
        red, other = inputs(policy.processor), inputs(policy.processor)
        other["pixel_values"] = -other["pixel_values"]
        assert not torch.allclose(policy.model(**red).logits, policy.model(**other).logits, atol=1e-3)
