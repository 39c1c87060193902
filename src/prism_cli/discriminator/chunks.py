"""Chunks of rollouts that the discriminator reads together."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prism_cli.discriminator.inputs import Comparisons, ScoreInputs
from prism_cli.discriminator.model import Discriminator


class Chunk(NamedTuple):
    """Some prompts with all their well-formed rollouts (C) and their teacher answers (A).

    Attributes:
        rollouts: (C,) places in the batch.
        taught: (A,) prompts with a well-formed teacher answer.
        rows: All parts with the prompt each continues, K of each teacher answer, then K of each rollout; to be read in
            one packed row, or in several when the rollouts are more than a micro-batch.
        compared: (C,) bool, rollouts with a teacher answer beside them.
        teacher_row: (C,) long, the place in `taught` of that answer.
        equal: (C, K) bool, parts of the same text as the teacher's.
    """

    rollouts: list[int]
    taught: list[int]
    rows: list[list[tuple[int, list[int]]]]
    compared: Tensor
    teacher_row: Tensor
    equal: Tensor


def chunks(discriminator: Discriminator, batch: Comparisons, micro_batch: int) -> Iterator[Chunk]:
    """All well-formed rollouts, whole prompts at a time: `micro_batch` rollouts, or one prompt's if it has more."""
    groups: dict[int, list[int]] = {}
    for n, parts in enumerate(batch.rollouts):
        if parts is not None:
            groups.setdefault(batch.prompt_of[n], []).append(n)
    chosen: list[int] = []
    for p in sorted(groups):
        if chosen and len(chosen) + len(groups[p]) > micro_batch:
            yield _chunk(discriminator, batch, chosen, micro_batch)
            chosen = []
        chosen += groups[p]
    if chosen:
        yield _chunk(discriminator, batch, chosen, micro_batch)


def _chunk(discriminator: Discriminator, batch: Comparisons, rollouts: list[int], micro_batch: int) -> Chunk:
    names, device = discriminator.parts, discriminator.device
    prompt_of = [batch.prompt_of[n] for n in rollouts]
    answers = {p: parts for p in sorted(set(prompt_of)) if (parts := batch.teacher[p]) is not None}
    responses = [parts for n in rollouts if (parts := batch.rollouts[n]) is not None]
    beside = list(zip(prompt_of, responses, strict=True))
    taught = list(answers)
    texts = [(p, parts[name]) for p, parts in [*answers.items(), *beside] for name in names]
    # Cut evenly into as many rows as the rollouts fill micro-batches.
    width = math.ceil(len(texts) / math.ceil(len(rollouts) / micro_batch))
    rows = [texts[start : start + width] for start in range(0, len(texts), width)]
    equal = [[p in answers and parts[name] == answers[p][name] for name in names] for p, parts in beside]
    return Chunk(
        rollouts=rollouts,
        taught=taught,
        rows=rows,
        compared=torch.tensor([p in answers for p in prompt_of], device=device),
        teacher_row=torch.tensor([taught.index(p) if p in answers else 0 for p in prompt_of], device=device),
        equal=torch.tensor(equal, device=device),
    )


def packed_row(discriminator: Discriminator, batch: Comparisons, texts: list[tuple[int, list[int]]]) -> ScoreInputs:
    """A chunk's row as it is read, pictures and all; a prompt stands in every row that holds one of its parts."""
    prompts = sorted({p for p, _ in texts})
    return discriminator.inputs([batch.prompts[p] for p in prompts], [(prompts.index(p), ids) for p, ids in texts])
