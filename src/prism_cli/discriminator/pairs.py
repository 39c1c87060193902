"""Pairs of a teacher's and a policy's parts, as the warm-up compares them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from prism_cli.discriminator.inputs import Comparisons, Parts
from prism_cli.discriminator.reader import PartReader
from prism_cli.models import multimodal

if TYPE_CHECKING:
    from datasets import Dataset


class Pairs(NamedTuple):
    """Policy samples beside teacher answers, without their pictures: those are encoded batch by batch.

    Attributes:
        prompts: The rows they are about.
        rows: (M,) the row of each pair.
        teacher: (M,) the teacher's parts, None where malformed or missing.
        policy: (M,) the policy's parts, None where malformed.
    """

    prompts: "Dataset"
    rows: Sequence[int]
    teacher: Sequence[Parts | None]
    policy: Sequence[Parts | None]

    def select(self, start: int, stop: int) -> "Pairs":
        """Some pairs in a row."""
        return Pairs(self.prompts, self.rows[start:stop], self.teacher[start:stop], self.policy[start:stop])

    def comparisons(self, reader: PartReader) -> Comparisons:
        """What the judge reads of them, pictures and all."""
        chosen = [self.prompts[i] for i in self.rows]
        return Comparisons(
            prompts=[reader.prompt(multimodal(row["prompt"], row["images"])) for row in chosen],
            teacher=self.teacher,
            rollouts=self.policy,
            prompt_of=range(len(chosen)),
        )
