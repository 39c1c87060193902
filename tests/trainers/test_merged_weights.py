"""What vLLM is given of a model with adapters is what merging would give, and the model is left as it is."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.generation.vllm_generation import VLLMGeneration

from prism_cli.trainers.vllm_rollouts import mend
from tests.tiny import tiny_policy


def generation(dtype):
    """TRL's side of vLLM around a model with adapters that have learned something; without an engine."""
    model, processor = tiny_policy()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q|v|gate)_proj|.*visual.*\.qkv")
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(model).to(dtype), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    one = object.__new__(VLLMGeneration)
    one.model, one.mode = model, "colocate"
    one._dist = SimpleNamespace(gather_params=lambda weights: nullcontext(), is_fsdp=False)
    return one, processor


def test_names_and_values_are_those_of_merging():
    ours, processor = generation(torch.float32)
    trls, _ = generation(torch.float32)
    mend(ours, processor)
    wanted = {name: weight.clone() for name, weight in trls._iter_named_params()}
    found = {name: weight.clone() for name, weight in ours._iter_named_params()}
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    plain = dict(tiny_policy()[0].named_parameters())
    assert sum(not torch.equal(found[name], plain[name]) for name in plain) == 8, (
        "3 in each of two layers, 1 in each of two of vision"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_bit_equal_after_twenty_syncs(dtype):
    one, processor = generation(dtype)
    mend(one, processor)
    before = copy.deepcopy(one.model.state_dict())
    first = {name: weight.clone() for name, weight in one._iter_named_params()}
    for _ in range(20):
        given = dict(one._iter_named_params())
    assert all(torch.equal(weight, before[name]) for name, weight in one.model.state_dict().items())
    assert all(torch.equal(given[name], weight) for name, weight in first.items())
