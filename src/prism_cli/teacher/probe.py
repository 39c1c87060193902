"""Probe of a teacher: pairs of pictures with one question and two right answers, to see whether it sees them."""

import re
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median
from typing import NamedTuple

from prism_cli.endpoint.client import EndpointClient
from prism_cli.errors import TeacherError
from prism_cli.teacher.probe_pairs import ProbePair
from prism_cli.teacher.prompting import Prompting
from prism_cli.teacher.sources import EndpointSource, Failed, TeacherAnswer, TeacherRequest

# A seeing teacher may misread a picture; one pair that is right on both sides is proof enough.
MIN_PAIRS_SEEN = 1


class ProbeResult(NamedTuple):
    """Answers of a teacher to probes.

    Attributes:
        pairs: Pairs of pictures it was asked about.
        seen: Pairs of which both pictures were answered right.
        asked: Questions asked, two a pair.
        well_formed: Answers in the asked form.
        failed: Why questions got no answer, one each.
        answers: (expected, answered), one each that got an answer.
        seconds: The median call's, or None where no time is known.
        prompt_tokens: Mean of a call, or None where the endpoint doesn't count.
        completion_tokens: Likewise.
    """

    pairs: int
    seen: int
    asked: int
    well_formed: int
    failed: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    seconds: float | None
    prompt_tokens: float | None
    completion_tokens: float | None

    @property
    def sees(self) -> bool:
        """Whether it answered from the pictures."""
        return self.seen >= MIN_PAIRS_SEEN

    @property
    def silent(self) -> bool:
        """Whether it answered nothing, so that nothing can be said of its sight."""
        return not self.answers


def is_right(text: str, expected: str, other: str, is_correct: Callable[[str, str], bool]) -> bool:
    """Whether an answer names what its picture shows, and not what the other one does.

    Args:
        text: The final answer, or the whole text of who didn't keep the form.
        expected: This picture's right answer.
        other: The other picture's.
        is_correct: Judges a bare answer.
    """
    words = " ".join(text.lower().split())
    named, denied = (re.search(rf"\b{re.escape(answer.lower())}\b", words) for answer in (expected, other))
    return is_correct(text, expected) or bool(named and not denied)


def pairs_seen(right: Sequence[bool]) -> int:
    """Pairs of which both are right; (2 × pairs,) side by side."""
    return sum(first and second for first, second in zip(right[::2], right[1::2], strict=True))


class _Question(NamedTuple):
    """One side of a pair: the question, this picture with its caption and its right answer, and the other's."""

    question: str
    image: bytes
    caption: str
    expected: str
    other: str


def probe(
    client: EndpointClient,
    prompting: Prompting,
    pairs: Sequence[ProbePair],
    is_correct: Callable[[str, str, str], bool],
    anew: bool = False,
) -> ProbeResult:
    """Asks a teacher about pairs of pictures, once each: what it writes unasked-for is part of what is measured.

    The newest answers that are kept stand if the teacher passes by them, so that a rerun costs nothing. If not it is
    asked again: what made it blind may be mended, and is no part of what answers are kept under.

    Args:
        client: Asks it; its endpoint takes one attempt a question, whatever the answer's form.
        prompting: How rows are put to it.
        pairs: What to ask.
        is_correct: Judges an answer by the right one and the question.
        anew: Ask, whatever is kept.

    Raises:
        TeacherError: the endpoint can't be reached, or refuses the key.
        BudgetError: a cap was reached.
    """
    questions = [
        _Question(pair.question, *side)
        for pair in pairs
        for side in zip(pair.images, pair.captions, pair.answers, pair.answers[::-1], strict=True)
    ]
    # Each time asks for another sample, as a question's first answer stays its answer.
    times = next(time for time in count() if not _is_kept(client, _requests(prompting, questions, time)))
    if times and not anew:
        last = _ask(client, prompting, questions, times - 1, is_correct)
        if last.sees:
            return last
    return _ask(client, prompting, questions, times, is_correct)


def refuse_blind(result: ProbeResult, name: str) -> None:
    """Stops before a stage is taught by one who can't see.

    Raises:
        TeacherError: no pair was answered right, with what was answered.
    """
    if result.sees:
        return
    reasons = sorted(set(result.failed))
    if result.silent:
        raise TeacherError(
            f"{name} answered none of {result.asked} probes ({', '.join(reasons)}), so whether it sees is not known",
            "look at its replies with `prism teacher log`; {check}=false skips this",
            ("check",),
        )
    wrong = [f"{answer!r} where {expected!r} is right" for expected, answer in result.answers if answer != expected]
    raise TeacherError(
        f"{name} does not see the pictures it is sent: it answered none of {result.pairs} pairs right "
        f"({'; '.join([*wrong[:2], *reasons[:2]])})",
        "check that the endpoint passes pictures on (`prism teacher check`), or teach by text alone: {modality}=text; "
        "{check}=false skips this",
        ("modality", "check"),
    )


def _is_kept(client: EndpointClient, requests: Sequence[TeacherRequest]) -> bool:
    return any(client.store.answers(client.key(request)) for request in requests)


def _ask(
    client: EndpointClient,
    prompting: Prompting,
    questions: Sequence[_Question],
    sample: int,
    is_correct: Callable[[str, str, str], bool],
) -> ProbeResult:
    """Asks every question; what is kept of the same sample is not asked again."""
    requests = _requests(prompting, questions, sample)
    right, well_formed, texts = [], 0, []
    given: list[TeacherAnswer] = []
    failed: list[str] = []
    for one, answer in zip(questions, EndpointSource(client).answers(requests), strict=True):
        if isinstance(answer, Failed):
            right.append(False)
            failed.append(answer.reason)
            continue
        given.append(answer)
        response = prompting.grammar.parse(answer.text)
        text = response.answer if response.answer is not None else answer.text
        right.append(
            is_right(text, one.expected, one.other, lambda text, right, one=one: is_correct(text, right, one.question))
        )
        well_formed += response.well_formed
        texts.append((one.expected, " ".join(text.split())[:80]))
    return ProbeResult(
        pairs=len(questions) // 2,
        seen=pairs_seen(right),
        asked=len(questions),
        well_formed=well_formed,
        failed=tuple(failed),
        answers=tuple(texts),
        seconds=_seconds(client, requests),
        prompt_tokens=_mean([answer.prompt_tokens for answer in given]),
        completion_tokens=_mean([answer.completion_tokens for answer in given]),
    )


def _requests(prompting: Prompting, questions: Sequence[_Question], sample: int) -> list[TeacherRequest]:
    rows = [
        {
            "id": f"probe {number}",
            "prompt": [{"role": "user", "content": one.question}],
            "images": [{"bytes": one.image, "path": None}],
            "caption": one.caption,
        }
        for number, one in enumerate(questions, 1)
    ]
    return [prompting.request(row, sample) for row in rows]


def _seconds(client: EndpointClient, requests: Sequence[TeacherRequest]) -> float | None:
    answers = [answer for request in requests for answer in client.store.answers(client.key(request))]
    known = [answer.seconds for answer in answers if answer.seconds is not None]
    return median(known) if known else None


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
