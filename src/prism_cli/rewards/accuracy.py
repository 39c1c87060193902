"""Is a final answer right? Deterministic rules, one small file a family of answers.

A family looks at an answer and a reference and says True, False, or None for "not mine"; the first that speaks decides.
"""

import re
from collections.abc import Sequence

from prism_cli.rewards.choices import same_choice
from prism_cli.rewards.quantities import same_quantity
from prism_cli.rewards.single import same_value
from prism_cli.rewards.values import same_values
from prism_cli.rewards.wording import plain

MAX_LENGTH = 1024
_FAMILIES = (same_choice, same_quantity, same_values, same_value)


def is_correct(answer: str, accepted: Sequence[str], question: str = "") -> bool:
    """Whether a final answer equals one of the accepted ones.

    Never true for an empty answer, for the question copied, for several answers where one is asked, or from 1024
    characters on.

    Args:
        answer: The final answer alone (a few words around it, "the answer is …", `\\boxed{…}`, are allowed).
        accepted: The accepted final answers.
        question: The question's text. Its options ("A. … B. …") tie letters to texts; its words decide whether order
            matters and which unit or percentage was asked for.
    """
    if len(answer) >= MAX_LENGTH or not (given := plain(answer)) or _copied(answer, question):
        return False
    return any(_same(given, plain(reference), question) for reference in accepted if reference.strip())


def _copied(answer: str, question: str) -> bool:
    """Whether an answer is the question itself."""
    words = re.findall(r"\w+", answer.casefold())
    return len(words) > 1 and words == re.findall(r"\w+", question.casefold())


def _same(answer: str, reference: str, question: str) -> bool:
    if answer == reference:
        return True
    return next(
        (verdict for family in _FAMILIES if (verdict := family(answer, reference, question)) is not None), False
    )
