"""Attribution: the cause of a wrong answer, found by changing one thing and having the policy answer again."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

Cause = Literal["perception", "reasoning", "both", "format", "verifier", "unknown"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
Picture = Literal["own", "blank", "other"]


class Wrong(NamedTuple):
    """A response that was found wrong.

    Attributes:
        question: As asked.
        accepted: The accepted final answers.
        answer: The response's final answer; None when it is malformed.
        caption: What the response says of the picture; None when it is malformed.
        true_caption: The true caption, or that of a teacher who got the answer right with it; None where there is
            neither.
        teacher: The teacher's final answer, or None.
    """

    question: str
    accepted: tuple[str, ...]
    answer: str | None
    caption: str | None = None
    true_caption: str | None = None
    teacher: str | None = None


class Retry(NamedTuple):
    """A wrong response to be written again from its caption on.

    Attributes:
        case: Its index.
        caption: What the new response says of the picture; it goes on from there.
        picture: The question's own, a blank one of its size, or another question's.
    """

    case: int
    caption: str
    picture: Picture = "own"


class Tried(NamedTuple):
    """The final answers that came when one thing was changed; None where malformed or not tried.

    Attributes:
        again: From the own caption: nothing changed but that it is answered greedily.
        corrected: From the true caption.
        blind: From the own caption, the picture blank.
        swapped: From the own caption, beside another question's picture.
    """

    again: str | None = None
    corrected: str | None = None
    blind: str | None = None
    swapped: str | None = None


class Reread(NamedTuple):
    """The answers of the teacher, who reasons well, from captions alone; None where it failed.

    Attributes:
        own: From the response's caption.
        corrected: From the true caption.
    """

    own: str | None
    corrected: str | None


Answer = Callable[[Sequence[Retry]], Sequence[str | None]]
Verify = Callable[[str, Sequence[str], str], bool]

HOLDS = ("again", "blind", "swapped")
# The caption and picture of each retry, in the order of `Tried`.
_RETRIES: tuple[tuple[str, Picture], ...] = (
    ("caption", "own"),
    ("true_caption", "own"),
    ("caption", "blank"),
    ("caption", "other"),
)


def retry(wrong: Sequence[Wrong], answer: Answer) -> list[Tried]:
    """The policy's answers when it goes on from its own caption or the true one, with and without the picture.

    Args:
        wrong: Responses found wrong; nothing is tried where a caption is missing.
        answer: Has the policy go on greedily from given captions; final answers, None where malformed.
    """
    cases = [i for i, case in enumerate(wrong) if case.caption is not None and case.true_caption is not None]
    retries = [Retry(i, getattr(wrong[i], which), picture) for i in cases for which, picture in _RETRIES]
    answers = list(answer(retries)) if retries else []
    by_case = {i: Tried(*answers[len(_RETRIES) * k : len(_RETRIES) * (k + 1)]) for k, i in enumerate(cases)}
    return [by_case.get(i, Tried()) for i in range(len(wrong))]


def worth_rereading(case: Wrong, tried: Tried, verify: Verify) -> bool:
    """Whether the policy's own continuations leave open what a good reasoner would make of the response's caption."""
    if case.answer is None or case.true_caption is None or _doubtful(case, tried, None, verify):
        return False
    return not _cured(case, tried, verify)


def cause_of(case: Wrong, tried: Tried, verify: Verify, reread: Reread | None = None) -> Cause:
    """Why a response is wrong.

    Args:
        case: The response.
        tried: What the policy answered when one thing was changed.
        verify: Whether an answer equals one of the accepted ones, for a question.
        reread: What the teacher answered from captions alone, if it was asked.
    """
    if case.answer is None:
        return "format"
    if _doubtful(case, tried, reread, verify):
        return "verifier"
    if case.caption is None or case.true_caption is None:
        return "unknown"
    if _cured(case, tried, verify):
        return "perception"
    if reread is not None:
        return _by_rereading(case, reread, verify)
    if _words(case.caption) == _words(case.true_caption):
        return "reasoning"
    if _right(tried.again, case, verify):
        # A slip, but for what? Where the picture is gone too, the caption must have sufficed.
        return "reasoning" if _right(tried.blind, case, verify) else "unknown"
    if _right(tried.corrected, case, verify):
        return "both"  # its caption leads astray, and its reasoning was not what usually follows from that caption
    # The true caption does not help. Where it makes a difference it is read, and so was the wrong one; where it makes
    # none, the reasoning looks past captions, and whether what it looked at was seen wrong stays open.
    return "unknown" if _same(tried.corrected, tried.again, case, verify) else "both"


def _by_rereading(case: Wrong, reread: Reread, verify: Verify) -> Cause:
    """The teacher in the reasoning's place: does the response's caption lead it to the right answer?"""
    if not _right(reread.corrected, case, verify) or reread.own is None:
        return "unknown"
    if _right(reread.own, case, verify):
        return "reasoning"
    return "perception" if _same(case.answer, reread.own, case, verify) else "both"


def holds(case: Wrong, tried: Tried, verify: Verify) -> dict[str, bool]:
    """Whether the same answer comes again from the own caption: `again`, `blind`, `swapped`; {} where not tried."""
    if case.caption is None or case.true_caption is None:
        return {}
    return {change: _same(case.answer, getattr(tried, change), case, verify) for change in HOLDS}


def _cured(case: Wrong, tried: Tried, verify: Verify) -> bool:
    """The own caption leads to the same wrong answer again, the true one to a right one."""
    return _same(case.answer, tried.again, case, verify) and _right(tried.corrected, case, verify)


def _doubtful(case: Wrong, tried: Tried, reread: Reread | None, verify: Verify) -> bool:
    """The teacher is found wrong too, and someone else says the same as it.

    That is the response, the policy with the true caption, or the teacher itself with the true caption.
    """
    if case.teacher is None or _right(case.teacher, case, verify):
        return False
    others = (case.answer, tried.corrected, None if reread is None else reread.corrected)
    return any(_same(answer, case.teacher, case, verify) for answer in others)


def _words(caption: str) -> list[str]:
    return caption.casefold().split()


def _right(answer: str | None, case: Wrong, verify: Verify) -> bool:
    return answer is not None and verify(answer, case.accepted, case.question)


def _same(answer: str | None, other: str | None, case: Wrong, verify: Verify) -> bool:
    return answer is not None and other is not None and verify(answer, [other], case.question)
