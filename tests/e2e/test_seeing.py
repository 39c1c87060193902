"""A trained policy answers from the picture: take the picture's content away, and what is left is guessing."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from prism_cli.evaluation.sampling import sample_responses
from prism_cli.models import load_policy, multimodal, placeholder_ids
from prism_cli.rewards.accuracy import is_correct
from prism_cli.worlds import world

QUESTIONS = 192


@pytest.fixture(scope="module")
def policy(trained):
    return load_policy(trained / "model")


def grey(picture):
    """A picture of the same size and mean colour, without anything in it."""
    mean = tuple(np.asarray(picture).reshape(-1, 3).mean(0).round().astype(int).tolist())
    return Image.new("RGB", picture.size, mean)


def best_guess(examples):
    """The share of right answers of whoever knows the most frequent answer to each kind of question."""
    counts = Counter((json.loads(example.truth)["kind"], example.answer) for example in examples)
    kinds = {kind for kind, _ in counts}
    return sum(max(n for (k, _), n in counts.items() if k == kind) for kind in kinds) / len(examples)


def measure(policy, examples, pictures):
    """Shares of right answers and of faithful captions."""
    asked = [
        multimodal([{"role": "user", "content": example.question}], [picture])
        for example, picture in zip(examples, pictures, strict=True)
    ]
    settings = {"max_tokens": 64, "temperature": 0.0, "seed": 0, "batch_size": 64}
    suppress = placeholder_ids(policy.processor)
    given = sample_responses(policy.model, policy.processor, asked, suppress=suppress, **settings)
    responses = [policy.grammar.parse(one.text) for one in given]
    pairs = list(zip(responses, examples, strict=True))
    right = [r.well_formed and is_correct(r.answer, [e.answer], e.question) for r, e in pairs]
    seen = [world("shapes").verdicts(r.blocks, e.question, e.truth)["perception"] for r, e in pairs]
    return sum(right) / len(pairs), sum(seen) / len(pairs)


def test_a_greyed_picture_leaves_a_trained_policy_guessing(policy):
    examples = world("shapes").examples("test", QUESTIONS, 0)
    pictures = [example.image for example in examples]
    with_picture, faithful = measure(policy, examples, pictures)
    blind, imagined = measure(policy, examples, [grey(picture) for picture in pictures])
    others, _ = measure(policy, examples, pictures[1:] + pictures[:1])
    assert with_picture > 0.5
    assert faithful > 0.2
    assert max(blind, others) <= best_guess(examples)
    assert imagined < 0.02
