"""Scores of responses by a discriminator that learns nothing from them."""

from collections.abc import Sequence
from typing import Any

from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.reader import PartReader


def part_scores(
    discriminator: Discriminator,
    reader: PartReader,
    conversations: Sequence[Sequence[dict[str, Any]]],
    answers: Sequence[str],
    responses: Sequence[Sequence[int]],
) -> list[dict[str, float | None]]:
    """Each response's scores by part, None where it is malformed.

    Args:
        discriminator: Scores.
        reader: Texts and tokens to parts.
        conversations: (N,) prompts with their pictures.
        answers: (N,) the teacher's texts.
        responses: (N,) token ids of the policy's responses.
    """
    comparisons = Comparisons(
        prompts=[reader.prompt(conversation) for conversation in conversations],
        teacher=[reader.text(answer) for answer in answers],
        rollouts=[reader.tokens(token_ids) for token_ids in responses],
        prompt_of=range(len(conversations)),
    )
    scores = DiscriminatorLearner(discriminator).score(comparisons).scores.tolist()
    return [{part: None if x != x else x for part, x in zip(discriminator.parts, row, strict=True)} for row in scores]
