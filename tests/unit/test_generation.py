"""The backend that generates, settings that can't go together, and prompts as vLLM takes them; none needs vLLM."""

import json
from importlib.util import find_spec

import pytest
from PIL import Image
from tests.tiny import tiny_policy

from prism_cli.assembly.generation import (
    check_rollouts,
    check_sampling,
    chosen_backend,
    planned_backend,
    resolved,
    sampler,
    vllm_rollouts,
)
from prism_cli.assembly.policy import resolve_start
from prism_cli.errors import PrismError, RecipeError
from prism_cli.evaluation.backend import TRANSFORMERS, Backend, PolicyFacts, vllm_obstacle
from prism_cli.evaluation.sampling import encode_prompts
from prism_cli.evaluation.vllm_sampling import _expanded, _prompts, collapsed, refuse_other_prompts
from prism_cli.models import Policy, multimodal
from prism_cli.recipes.generation import TransformersGeneration, VLLMGeneration
from prism_cli.recipes.stages import EvalRecipe, RLRecipe
from prism_cli.responses import Grammar, Part

GRAMMAR = Grammar({"all": Part(("answer",), 1.0)}, "answer")
VLLM = {"type": "vllm"}


@pytest.fixture(scope="module")
def policy():
    return Policy(*tiny_policy(), GRAMMAR, None)


def check(recipe):
    start = resolve_start(recipe)
    return check_rollouts(
        recipe.generation, start.tiny, start.four_bits, recipe.launch.processes, recipe.longest_tokens
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": {"type": "tiny"}}, "makes one on the spot"),
        ({"lora": {"bits": 4}}, "weights in 4 bits"),
        ({"generation": {**VLLM, "tensor_parallel": 2}, "launch": {"processes": 3}}, "2 doesn't divide"),
        ({"generation": {**VLLM, "max_model_tokens": 100}}, "100 is less than"),
    ],
)
def test_what_vllm_cannot_do_in_a_training_is_refused(fields, said):
    with pytest.raises(RecipeError, match=said):
        check(RLRecipe.model_validate({"generation": VLLM, **fields}))


def test_a_server_is_for_training():
    server = {**VLLM, "mode": "server", "server": "http://127.0.0.1:1"}
    with pytest.raises(RecipeError, match="none is trained"):
        check_sampling(EvalRecipe.model_validate({"generation": server}).generation)
    assert check(RLRecipe.model_validate({"generation": server}))[0][1].startswith("vLLM, http://127.0.0.1:1")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_transformers_generates_and_a_recipe_that_names_vllm_is_refused(policy, capsys):
    assert chosen_backend(None, policy) == TRANSFORMERS
    assert "transformers generates: vLLM is not installed" in capsys.readouterr().out
    assert chosen_backend(TransformersGeneration(type="transformers"), policy) == TRANSFORMERS
    assert not capsys.readouterr().out
    with pytest.raises(RecipeError, match="vLLM is not installed"):
        chosen_backend(VLLMGeneration(), policy)


@pytest.mark.parametrize(
    ("facts", "on_gpu", "reason"),
    [
        (PolicyFacts("qwen3_vl", False, True), True, None),
        (PolicyFacts("qwen3_vl", False, True), False, "there is no GPU"),
        (PolicyFacts("smolvlm", False, True), True, "smolvlm was not tried with it"),
        (PolicyFacts("qwen3_vl", True, True), True, "it can't take weights in 4 bits"),
        (PolicyFacts("qwen3_vl", False, False), True, "the model is not saved anywhere"),
    ],
)
def test_the_plan_takes_vllm_exactly_where_a_run_would(monkeypatch, facts, on_gpu, reason):
    monkeypatch.setattr("prism_cli.evaluation.backend.find_spec", lambda name: name)
    obstacle = vllm_obstacle(facts, on_gpu, named=False)
    assert (obstacle and obstacle.reason) == reason
    assert planned_backend(None, facts, on_gpu).name == ("transformers" if reason else "vllm")
    assert planned_backend(VLLMGeneration(), facts, on_gpu).name == "vllm", "what a recipe names is planned"


def test_a_key_of_vllm_needs_no_type(policy):
    assert resolved(EvalRecipe.model_validate({"generation": {"memory": 0.5}}).generation).vllm.memory == 0.5


def test_a_backend_reaches_another_process_as_json():
    backend = resolved(VLLMGeneration(memory=0.5, options={"enforce_eager": True}))
    assert Backend.from_json(json.loads(json.dumps(backend.to_json()))) == backend
    assert Backend.from_json(json.loads(json.dumps(TRANSFORMERS.to_json()))) == TRANSFORMERS


def test_a_trainer_is_told_of_vllm_what_the_recipe_says(policy):
    recipe = RLRecipe.model_validate({"generation": {**VLLM, "memory": 0.4, "options": {"enforce_eager": True}}})
    how = vllm_rollouts(resolved(recipe.generation), policy, recipe.longest_tokens)
    assert how.options == {"enforce_eager": True}
    assert how.arguments["vllm_gpu_memory_utilization"] == 0.4
    assert how.arguments["vllm_max_model_length"] == 1024, "the tiny model ends there"
    assert how.arguments["vllm_enable_sleep_mode"] is False, "there is no GPU to free"
    assert vllm_rollouts(TRANSFORMERS, policy, recipe.longest_tokens) is None


def test_vllm_is_handed_one_placeholder_an_image_and_expected_to_make_of_it_what_the_processor_does(policy):
    pictures = [Image.new("RGB", (48, 48)), Image.new("RGB", (48, 96))]
    conversations = [multimodal([{"role": "user", "content": "what is at a1 ?"}], pictures[:n]) for n in (0, 1, 2)]
    given = _prompts(policy.processor, conversations, None)
    whole = [encode_prompts(policy.processor, [one])["input_ids"][0].tolist() for one in conversations]
    mark = policy.processor.image_token_id
    assert [one["prompt_token_ids"].count(mark) for one in given] == [0, 1, 2]
    assert [collapsed(ids, mark) for ids in whole] == [one["prompt_token_ids"] for one in given]
    assert _expanded(policy.processor, given) == whole
    begun = _prompts(policy.processor, conversations, ["red square", "", ""])
    assert len(begun[0]["prompt_token_ids"]) == len(given[0]["prompt_token_ids"]) + 2


def test_prompts_read_otherwise_are_refused():
    refuse_other_prompts([[1, 2]], [[1, 2]], "runs/sft")
    with pytest.raises(PrismError, match="vLLM read prompt 1 as 3 tokens where the policy's processor makes 2"):
        refuse_other_prompts([[1, 2], [1, 2, 2]], [[1, 2], [1, 2]], "runs/sft")


def test_a_sampler_of_transformers_answers_as_it_is_asked(policy):
    ask = [multimodal([{"role": "user", "content": "what is at a1 ?"}], [])]
    with sampler(TRANSFORMERS, policy, "", max_tokens=5, batch_size=1) as sample:
        done = []
        (said,) = sample(ask, temperature=0.0, seed=0, on_batch=done.append)
    assert (len(said.token_ids), said.truncated, done) == (5, True, [1])


def test_a_server_that_does_not_answer_is_named():
    import requests

    from prism_cli.trainers.vllm_rollouts import VLLMRollouts

    nowhere = VLLMRollouts(False, {"vllm_server_base_url": "http://127.0.0.1:1"}, {})
    with (
        pytest.raises(PrismError, match=r"no vLLM answers at http://127\.0\.0\.1:1"),
        nowhere.started_for(None, False, 0),
    ):
        requests.get("http://127.0.0.1:1")
