"""Pairs of a teacher's and a policy's parts, as the warm-up compares them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from prism_cli.discriminator.inputs import Comparisons, Parts
from prism_cli.discriminator.reader import PartReader
from prism_cli.errors import PrismError
from prism_cli.models import multimodal
from prism_cli.progress import say

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
        """Inputs of the discriminator for these pairs, pictures included."""
        chosen = [self.prompts[i] for i in self.rows]
        return Comparisons(
            prompts=[reader.prompt(multimodal(row["prompt"], row["images"])) for row in chosen],
            teacher=self.teacher,
            rollouts=self.policy,
            prompt_of=range(len(chosen)),
        )


def refuse_incomparable(pairs: Pairs, held_out: int) -> None:
    """Says how many pairs can be compared, and refuses those of which none can.

    Args:
        pairs: All of them.
        held_out: How many of the first are not trained on.

    Raises:
        PrismError: none of those to train on is well-formed on both sides.
    """
    total = len(pairs.rows)
    usable = [None not in pair for pair in zip(pairs.teacher, pairs.policy, strict=True)]
    if not any(usable[held_out:]):
        teacher, policy = (sum(parts is None for parts in side) for side in (pairs.teacher, pairs.policy))
        raise PrismError(
            f"the discriminator can't be warmed up: of {total} pairs none to train on is well-formed on both sides; "
            f"malformed are {teacher} teacher answers and {policy} policy samples",
            _advice(teacher, policy),
        )
    say(f"warm-up: {sum(usable)} of {total} pairs are well-formed on both sides")


def _advice(teacher: int, policy: int) -> str:
    """Cure for so many malformed texts of each side."""
    if teacher > policy:
        return (
            "the teacher's side: look at its answers (`prism teacher check`, `prism teacher log`), or declare the "
            "response.parts that they have"
        )
    if policy > teacher:
        return (
            "the policy's side: train SFT longer on this form, allow longer responses (max_response_tokens), or "
            "declare the response.parts that its texts have"
        )
    return "both sides alike: declare the response.parts that the texts have"
