"""Rollouts side by side, before and after align, for the report: the same prompts, the same discriminator."""

import json
from typing import TYPE_CHECKING, Any

import torch

from prism_cli.assembly.policy import start_policy
from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.reader import PartReader
from prism_cli.evaluation.sampling import sample_responses
from prism_cli.models import Policy, device, load_policy, multimodal, placeholder_ids
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.responses import Grammar
from prism_cli.runs.files import write_atomically
from prism_cli.runs.folder import Run
from prism_cli.teacher.answers import TeacherAnswers

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN = 12


def write_showcase(
    recipe: AlignRecipe, run: Run, discriminator: Discriminator, rows: "Dataset", teacher: TeacherAnswers
) -> None:
    """Samples both policies on the first rows, scores them with the final discriminator, and writes showcase.jsonl."""
    chosen = [rows[i] for i in range(min(SHOWN, len(rows)))]
    answers = teacher.answers(chosen)
    chosen = [row for row, answer in zip(chosen, answers, strict=True) if answer is not None]
    taught = [answer for answer in answers if answer is not None]
    before = _respond(recipe, start_policy(recipe), discriminator, chosen, taught, teacher.grammar)
    after = _respond(recipe, load_policy(run.model), discriminator, chosen, taught, teacher.grammar)
    lines = [
        {
            "question": row["prompt"][-1]["content"],
            "answer": row["answers"][0] if row["answers"] else None,
            "image": teacher.image_url(row["id"]),
            "teacher": answer,
            "before": old,
            "after": new,
        }
        for row, answer, old, new in zip(chosen, taught, before, after, strict=True)
    ]
    write_atomically(run.folder / "showcase.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def _respond(
    recipe: AlignRecipe,
    policy: Policy,
    discriminator: Discriminator,
    rows: list[dict],
    answers: list[str],
    taught: Grammar,
) -> list[dict[str, Any]]:
    conversations = [multimodal(row["prompt"], row["images"]) for row in rows]
    policy.model.to(device())
    sampled = sample_responses(
        policy.model,
        policy.processor,
        conversations,
        max_tokens=recipe.max_response_tokens,
        temperature=recipe.temperature,
        seed=recipe.seed,
        suppress=placeholder_ids(policy.processor),
        batch_size=SHOWN,
    )
    reader = PartReader(policy.processor, policy.grammar, taught)
    scores = (
        DiscriminatorLearner(discriminator)
        .score(
            Comparisons(
                prompts=[reader.prompt(conversation) for conversation in conversations],
                teacher=[reader.text(text) for text in answers],
                rollouts=[reader.tokens(response.token_ids) for response in sampled],
                prompt_of=range(len(rows)),
            )
        )
        .scores
    )
    return [
        {"text": response.text, "scores": _named(row, discriminator.parts)}
        for response, row in zip(sampled, scores, strict=True)
    ]


def _named(scores: torch.Tensor, parts: tuple[str, ...]) -> dict[str, float | None]:
    """A malformed response has no scores."""
    return {part: None if value != value else value for part, value in zip(parts, scores.tolist(), strict=True)}
