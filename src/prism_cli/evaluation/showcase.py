"""The showcase of align: rollouts before and after it, side by side, on the same prompts and scored alike."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.evaluation.sampling import sample_responses
from prism_cli.models import Policy, device, multimodal, placeholder_ids
from prism_cli.runs.files import write_atomically

FILE = "showcase.jsonl"
MAX_PROMPTS = 12

Conversations = list[list[dict[str, Any]]]
# A policy, (N,) conversations and the (N,) token ids it answered with → (N,) part → score, None of a malformed one.
Score = Callable[[Policy, Conversations, list[list[int]]], list[dict[str, float | None]]]


class Prompt(NamedTuple):
    """A prompt of the showcase.

    Attributes:
        row: Of the data, with `prompt`, `images` and `answers`.
        teacher: The teacher's answer.
        image: Data URL of its picture, or None.
    """

    row: dict[str, Any]
    teacher: str
    image: str | None


class Policies(NamedTuple):
    """The two policies, each loaded when its turn comes, so that one is in memory at a time.

    Attributes:
        before: Loads the policy that align started from.
        after: Loads the one it ended with.
    """

    before: Callable[[], Policy]
    after: Callable[[], Policy]


class Sampling(NamedTuple):
    """The sampling of both policies.

    Attributes:
        max_tokens: Longest response.
        temperature: Sampling temperature.
        seed: Of the sampling.
    """

    max_tokens: int
    temperature: float
    seed: int


def write_showcase(
    folder: Path, policies: Policies, sampling: Sampling, score: Score, prompts: Sequence[Prompt]
) -> None:
    """Samples both policies on the prompts, scores their responses, and writes showcase.jsonl.

    Args:
        folder: The run's.
        policies: Before and after.
        sampling: How they are sampled.
        score: Scores their responses.
        prompts: At most `MAX_PROMPTS`.
    """
    before, after = (_responses(load(), sampling, score, prompts) for load in policies)
    lines = [
        {
            "question": prompt.row["prompt"][-1]["content"],
            "answer": prompt.row["answers"][0] if prompt.row["answers"] else None,
            "image": prompt.image,
            "teacher": prompt.teacher,
            "before": old,
            "after": new,
        }
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]
    write_atomically(folder / FILE, "".join(f"{json.dumps(line)}\n" for line in lines))


def _responses(policy: Policy, sampling: Sampling, score: Score, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    conversations = [multimodal(prompt.row["prompt"], prompt.row["images"]) for prompt in prompts]
    policy.model.to(device())
    responses = sample_responses(
        policy.model,
        policy.processor,
        conversations,
        **sampling._asdict(),
        suppress=placeholder_ids(policy.processor),
        batch_size=MAX_PROMPTS,
    )
    scores = score(policy, conversations, [response.token_ids for response in responses])
    return [{"text": response.text, "scores": named} for response, named in zip(responses, scores, strict=True)]
