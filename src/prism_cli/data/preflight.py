"""Checks of a single row, before anything is trained on it or sent to a teacher."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from prism_cli.data.formats import ParsedRow, printable
from prism_cli.data.pictures import Picture
from prism_cli.responses import Grammar

CHECKS_VERSION = 2
"""Goes up when a check changes, so that rows prepared under older checks are prepared again."""

RESPONSES = ("teacher_response", "demonstration", "student_response")
# A placeholder in a text asks for a picture that is not there; the other marks would end or forge a turn.
_SPECIAL_TOKEN = re.compile(r"<\|(?:im_start|im_end|endoftext|image_pad|video_pad|vision_start|vision_end)\|>")

Needs = Literal["sft", "align", "rl", "eval"]
Verify = Callable[[str, Sequence[str], str], bool]


class Problem(NamedTuple):
    """One thing wrong with one row.

    Attributes:
        file: The source, as the user would name it.
        row: 1-based row of it; the line of a JSONL or CSV file.
        field: Where in the row.
        what: What was found.
        cure: What to do.
        severity: An error makes the row unusable, a warning does not.
        kind: Short name to count by.
    """

    file: str
    row: int
    field: str
    what: str
    cure: str
    severity: Literal["error", "warning"]
    kind: str = "unreadable row"

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.row}: {self.field}: {self.what} → {self.cure}")


class _Finding(NamedTuple):
    kind: str
    field: str
    what: str
    cure: str
    severity: Literal["error", "warning"] = "error"


def check_row(
    parsed: ParsedRow,
    pictures: Sequence[Picture],
    *,
    file: str,
    row: int,
    needs: Needs | None = None,
    grammar: Grammar | None = None,
    verify: Verify | None = None,
) -> list[Problem]:
    """Everything wrong with one row by itself.

    Args:
        parsed: The row's texts, marks and references.
        pictures: Its pictures, decoded to their end.
        file: Name of the source, for the problems.
        row: Its number there.
        needs: The stage it is for: `sft` needs a demonstration, `rl` and `eval` an accepted answer.
        grammar: What teacher responses must follow, and demonstrations should.
        verify: Whether an answer is one of the accepted ones, given the question; each accepted answer must pass as its
            own answer.
    """
    findings = [
        *_about_pictures(parsed, pictures),
        *_about_question(parsed),
        *_about_special_tokens(parsed),
        *_about_answers(parsed, needs, verify),
        *_about_responses(parsed, needs, grammar),
    ]
    return [Problem(file, row, f.field, f.what, f.cure, f.severity, f.kind) for f in findings]


def picture_field(index: int, count: int) -> str:
    """The name of a row's picture in a problem."""
    return "image" if count == 1 else f"image {index + 1} of {count}"


def _about_pictures(parsed: ParsedRow, pictures: Sequence[Picture]) -> Iterator[_Finding]:
    count = len(parsed.images)
    if parsed.marks and parsed.marks != count:
        yield _Finding(
            "picture count",
            "images",
            f"{_counted(parsed.marks, '<image> mark')} for {_counted(count, 'picture')}",
            "give each mark its picture, or leave the marks out",
        )
    for index, picture in enumerate(pictures):
        if picture.fault is not None:
            yield _Finding(
                picture.fault.kind, picture_field(index, len(pictures)), picture.fault.what, picture.fault.cure
            )


def question_of(parsed: ParsedRow) -> str:
    """The last user turn of a row's prompt; "" when there is none."""
    return next((turn["content"] for turn in reversed(parsed.prompt) if turn["role"] == "user"), "")


def _about_special_tokens(parsed: ParsedRow) -> Iterator[_Finding]:
    texts = [("prompt", "\n".join(turn["content"] for turn in parsed.prompt))]
    texts += [(field, getattr(parsed, field) or "") for field in RESPONSES]
    for field, text in texts:
        if found := _SPECIAL_TOKEN.search(text):
            yield _Finding(
                "special token",
                field,
                f"{found[0]} stands in the text and would be read as the model's own mark",
                "take it out, or drop the row",
            )


def _about_question(parsed: ParsedRow) -> Iterator[_Finding]:
    if not question_of(parsed).strip():
        yield _Finding("no question", "prompt", "the question is empty", "give a question, or drop the row")


def _about_answers(parsed: ParsedRow, needs: Needs | None, verify: Verify | None) -> Iterator[_Finding]:
    # SFT and align never read the accepted answers.
    severity = "warning" if needs in ("sft", "align") else "error"
    if needs in ("rl", "eval") and not parsed.answers:
        yield _Finding("no answer", "answers", "there is none", f"give `answer`: {needs} compares with it")
    for answer in parsed.answers:
        if not answer.strip():
            yield _Finding(
                "empty answer",
                "answers",
                "an accepted answer is empty",
                "give it, or drop the row",
                "error" if needs in ("rl", "eval") else "warning",
            )
        elif verify is not None and not verify(answer, [answer], question_of(parsed)):
            yield _Finding(
                "unscorable answer",
                "answers",
                f"{shortened(answer)} would not be scored as right by the verifier",
                "write the final answer alone: a letter, a number, a short text",
                severity,
            )


def _about_responses(parsed: ParsedRow, needs: Needs | None, grammar: Grammar | None) -> Iterator[_Finding]:
    if needs == "sft" and not (parsed.demonstration or "").strip():
        yield _Finding(
            "no demonstration", "demonstration", "there is none", "give the text to learn, or name a teacher"
        )
    for field in RESPONSES:
        text = getattr(parsed, field)
        if grammar is None or not text or (response := grammar.parse(text)).well_formed:
            continue
        yield _Finding(
            f"malformed {field.replace('_', ' ')}",
            field,
            f"malformed: {response.problem}",
            f"write {' '.join(f'<{tag}>…</{tag}>' for tag in grammar.tags)}",
            # Public demonstrations without tags are common, and a policy's own answers are what they are.
            "error" if field == "teacher_response" else "warning",
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(text: str, length: int = 40) -> str:
    """A text for a message: quoted, on one line, cut."""
    line = " ".join(text.split())
    return repr(line if len(line) <= length else f"{line[: length - 1]}…")
