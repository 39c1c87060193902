"""Shortcut probes: whether length, format or another picture tells teacher from policy as well as the discriminator."""

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from prism_cli.discriminator.health import HealthWarning, History
from prism_cli.discriminator.inputs import PromptInputs

PROBES = {
    "length": (
        "the length alone",
        "let the teacher write as long as the policy does (teacher.instruction, teacher.examples), or train SFT on its "
        "answers first",
    ),
    "format": (
        "tags, numbers and punctuation alone, without a word",
        "show the teacher the policy's form (teacher.instruction, teacher.examples), or train SFT on its answers first",
    ),
    "image_swapped": (
        "the text beside another row's picture",
        "warm the discriminator up on more pairs, or build it from a larger discriminator.base: it does not look",
    ),
}
_PIECE = re.compile(
    r"(?P<tag></?[A-Za-z][\w-]*>)|(?P<line>\n)|(?P<number>\d+)|(?P<words>[^\W\d]+(?:[ \t]+[^\W\d]+)*)|\S"
)


class Scored(NamedTuple):
    """Scores of paired texts of one part, by the discriminator or a probe.

    Attributes:
        teacher: (N,).
        policy: (N,).
        prompts: (N,) the prompt of each pair.
    """

    teacher: Sequence[float]
    policy: Sequence[float]
    prompts: Sequence[Hashable]

    def wins(self) -> list[list[float]]:
        """Prompt by prompt, in the order they first appear: 1 where the teacher's text scores higher, 0 where lower, ½
        in a tie. Their mean is the AUC within prompts."""
        by_prompt: dict[Hashable, list[float]] = defaultdict(list)
        for teacher, policy, prompt in zip(self.teacher, self.policy, self.prompts, strict=True):
            by_prompt[prompt].append((teacher > policy) + (teacher == policy) / 2)
        return list(by_prompt.values())


def either_way(wins: list[list[float]]) -> list[list[float]]:
    """The wins of the other side, if they are more: a shortcut may favour long texts or short ones."""
    mean = sum(sum(values) / len(values) for values in wins) / len(wins)
    return wins if mean >= 0.5 else [[1 - value for value in values] for values in wins]


def skeleton(text: str) -> str:
    """The form of a text without its words: tags, line ends and punctuation stay, a number becomes 0, words `w`."""

    def piece(match: re.Match[str]) -> str:
        return {"tag": match[0], "line": "¶", "number": "0", "words": "w"}.get(match.lastgroup or "", match[0])

    return " ".join(map(piece, _PIECE.finditer(text)))


def swap_images(prompts: Sequence[PromptInputs], image_token: int) -> list[PromptInputs | None]:
    """Each prompt with the pictures of the next one that has as many; None where there is no such other.

    Args:
        prompts: (P,), image tokens expanded.
        image_token: Its id; as many stand in the text as the picture has features.
    """
    runs = [_runs(prompt.input_ids, image_token) for prompt in prompts]
    same: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate(runs):
        same[len(found)].append(index)
    swapped: list[PromptInputs | None] = [None] * len(prompts)
    for count, members in same.items():
        if count and len(members) > 1:
            for here, there in zip(members, members[1:] + members[:1], strict=True):
                donor = prompts[there]
                ids = _with_runs(prompts[here].input_ids, runs[here], runs[there], image_token)
                swapped[here] = PromptInputs(ids, donor.pixel_values, donor.image_grid_thw)
    return swapped


def shortcut(history: History, part: str, probe: str) -> HealthWarning | None:
    """Shortcuts: a probe does as well as the discriminator, so that may be all it reads."""
    for line in history:
        if line.get(f"shortcuts/{probe}_suffices/{part}", 0) >= 0.5:
            reads, cure = PROBES[probe]
            own, auc = (line[f"shortcuts/{name}/{part}"] for name in ("discriminator", probe))
            return HealthWarning(
                f"shortcut/{probe}/{part}",
                f"{reads} tells teacher from policy in {part} as well as the discriminator does (AUC {auc:.2f}, the "
                f"discriminator {own:.2f}): that may be all it reads",
                cure,
            )
    return None


def _runs(ids: Sequence[int], token: int) -> list[tuple[int, int]]:
    """(start, length) of each run of a token."""
    runs: list[tuple[int, int]] = []
    for place, id in enumerate(ids):
        if id == token:
            if runs and sum(runs[-1]) == place:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((place, 1))
    return runs


def _with_runs(ids: list[int], own: list[tuple[int, int]], other: list[tuple[int, int]], token: int) -> list[int]:
    """The ids with runs of other lengths in the same places."""
    result, done = [], 0
    for (start, length), (_, wanted) in zip(own, other, strict=True):
        result += [*ids[done:start], *[token] * wanted]
        done = start + length
    return result + list(ids[done:])
