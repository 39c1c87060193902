"""What is sampled is the policy's own distribution, whatever its generation_config wishes."""

import copy

import pytest
from PIL import Image
from tests.tiny import tiny_policy

from prism_cli.evaluation.sampling import sample_responses
from prism_cli.models import multimodal

# What chat models ship with, and more; each changes what a model says when it is left to decide.
WISHES = [{"top_k": 1}, {"top_p": 0.1}, {"temperature": 0.01}, {"repetition_penalty": 5.0}, {"min_p": 0.9}]


def said(model, temperature):
    asked = [multimodal([{"role": "user", "content": "what is at b2 ?"}], [Image.new("RGB", (48, 48), "red")])] * 2
    processor = tiny_policy()[1]
    settings = {"max_tokens": 24, "seed": 0, "suppress": [], "batch_size": 2}
    return [
        response.token_ids
        for response in sample_responses(model, processor, asked, temperature=temperature, **settings)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("wishes", WISHES, ids=lambda wishes: next(iter(wishes)))
def test_the_models_own_generation_settings_change_nothing(temperature, wishes):
    model = copy.deepcopy(tiny_policy()[0])
    plain = said(model, temperature)
    model.generation_config.do_sample = True
    model.generation_config.update(**wishes)
    assert said(model, temperature) == plain


def test_sampling_draws_and_greedy_does_not():
    model = tiny_policy()[0]
    greedy, sampled = said(model, 0.0), said(model, 1.0)
    assert greedy[0] == greedy[1]
    assert sampled[0] != sampled[1]
