"""Cards that show one question with the teacher's answer and the policy's responses before and after."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.report.quantities import is_number
from prism_cli.responses import Response

TEACHER = "Teacher"
MALFORMED = "not well-formed"
# A text is shown in full up to here, beyond it by its two ends.
MOST_CHARACTERS = 8000


class Side(NamedTuple):
    """One text on a card.

    Attributes:
        name: "Teacher", "Before", "After".
        blocks: (label, text); the label is "" for raw text.
        marks: (words, "good" | "bad") such as ("well-formed", "good").
        scores: (part, score as text): the discriminator's.
        run: By which the page's filter names it; "" for a text that is no response of a policy.
        cause: Of a wrong answer, where it is known.
        change: "gained" or "lost" beside the run before, else "".
        before: That run.
    """

    name: str
    blocks: list[tuple[str, str]]
    marks: list[tuple[str, str]]
    scores: list[tuple[str, str]]
    run: str = ""
    cause: str = ""
    change: str = ""
    before: str = ""

    @property
    def verdicts(self) -> list[str]:
        """Filters of a question: right, wrong, malformed; gained, lost."""
        words = [word for word, _ in self.marks]
        verdicts = [word for word in ("right", "wrong") if word in words]
        verdicts += ["malformed"] if any(word.startswith(MALFORMED) for word in words) else []
        return [*verdicts, *([self.change] if self.change else [])]


class Card(NamedTuple):
    """One question.

    Attributes:
        question: Its text.
        answer: The right answer.
        images: Inline pictures.
        image_dropped: Whether a picture was left out as unsafe.
        sides: Teacher, before, after; those there are.
        source: Which data set it is from, where there are several.
    """

    question: str
    answer: str
    images: list[str]
    image_dropped: bool
    sides: list[Side]
    source: str = ""


def cards(
    rows: Sequence[Mapping[str, Any]],
    parse: Callable[[str], Response] | None,
    is_correct: Callable[[str, Sequence[str], str], bool] | None,
) -> list[Card]:
    """One card a line of showcase.jsonl."""
    made = []
    for row in rows:
        question, answer = shortened(str(row.get("question") or "")), shortened(str(row.get("answer") or ""))
        right = is_right(is_correct, [answer] if answer else [], question)
        sides = [
            _side(name, text, scores, parse, right)
            for name, (text, scores) in (
                (TEACHER, (row.get("teacher"), None)),
                ("Before", _text_and_scores(row.get("before"))),
                ("After", _text_and_scores(row.get("after"))),
            )
            if isinstance(text, str)
        ]
        images = [row["image"]] if isinstance(row.get("image"), str) else []
        made.append(Card(question, answer, images, bool(row.get("image_dropped")), sides))
    return made


def is_right(
    is_correct: Callable[[str, Sequence[str], str], bool] | None, answers: Sequence[str], question: str
) -> Callable[[str], bool] | None:
    """A function that gives verdicts on answers to one question; None without answers or rules."""
    if is_correct is None or not answers:
        return None
    return lambda given: is_correct(given, answers, question)


def read(
    text: str, parse: Callable[[str], Response] | None, right: Callable[[str], bool] | None
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The blocks and the marks of a text, as a `Side` has them; raw and unmarked without a grammar."""
    if parse is None:
        return [("", shortened(text))], []
    response = parse(text)
    if not response.well_formed:
        return [("", shortened(text))], [(f"{MALFORMED}: {shortened(str(response.problem), 400)}", "bad")]
    marks = [("well-formed", "good")]
    if right and response.answer is not None:
        marks.append(("right", "good") if right(response.answer) else ("wrong", "bad"))
    return [(label, shortened(block)) for label, block in response.blocks.items()] or [("", shortened(text))], marks


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, or its two ends where it is longer than that."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[… {len(text) - 2 * (most // 2)} characters left out …]\n{text[-(most // 2) :]}"


def _text_and_scores(response: Any) -> tuple[Any, Any]:
    return (response.get("text"), response.get("scores")) if isinstance(response, Mapping) else (None, None)


def _side(
    name: str, text: str, scores: Any, parse: Callable[[str], Response] | None, right: Callable[[str], bool] | None
) -> Side:
    shown = [
        (str(part), f"{score:+.2f}".replace("-", "−") if is_number(score) else "–")
        for part, score in (scores.items() if isinstance(scores, Mapping) else ())
    ]
    return Side(name, *read(text, parse, right), shown, "" if name == TEACHER else name)
