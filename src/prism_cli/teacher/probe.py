"""Pictures that show whether a teacher sees: the same question about two of them, with different right answers."""

import io
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

NUMBERS = ((417, 832), (295, 604), (738, 159))
_SIZE, _FONT_SIZE = (384, 256), 120


class ProbePair(NamedTuple):
    """One question about two pictures.

    Attributes:
        question: As asked about either.
        images: Encoded pictures.
        answers: Their right answers, which differ: who can't see gives one of them at best.
        captions: What a text-only teacher is told of them.
    """

    question: str
    images: tuple[bytes, bytes]
    answers: tuple[str, str]
    captions: tuple[str, str]


def number_pairs() -> list[ProbePair]:
    """Three-digit numbers in black on white, the same every time."""
    return [
        ProbePair(
            "Which number is written in the picture?",
            (_picture(str(first)), _picture(str(second))),
            (str(first), str(second)),
            (f"the number {first} in black on white", f"the number {second} in black on white"),
        )
        for first, second in NUMBERS
    ]


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


def _picture(text: str) -> bytes:
    image = Image.new("RGB", _SIZE, "white")
    centre = (_SIZE[0] / 2, _SIZE[1] / 2)
    ImageDraw.Draw(image).text(centre, text, fill="black", font=ImageFont.load_default(_FONT_SIZE), anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
