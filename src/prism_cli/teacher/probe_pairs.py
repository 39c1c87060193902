"""Pairs of pictures for the probe of a teacher: one question, two right answers."""

import io
from typing import NamedTuple, Self

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

    @classmethod
    def of(
        cls,
        question: str,
        images: tuple[Image.Image, Image.Image],
        answers: tuple[str, str],
        captions: tuple[str, str],
    ) -> Self:
        """A pair of pictures that are not encoded yet."""
        first, second = images
        return cls(question, (_encoded(first), _encoded(second)), answers, captions)


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


def _picture(text: str) -> bytes:
    image = Image.new("RGB", _SIZE, "white")
    centre = (_SIZE[0] / 2, _SIZE[1] / 2)
    ImageDraw.Draw(image).text(centre, text, fill="black", font=ImageFont.load_default(_FONT_SIZE), anchor="mm")
    return _encoded(image)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
