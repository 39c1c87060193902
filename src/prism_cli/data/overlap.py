"""Rows that are the same: twice in one set, or in a training set and an evaluation set."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from prism_cli.data.pictures import SHAPE_BITS

NEAR = 10
"""Bits of 256 in which the hashes of one picture may differ after lossy re-encoding or scaling."""


class Identity(NamedTuple):
    """What a row is recognised by.

    Attributes:
        question: Digest of the whole prompt, however it is spaced and capitalised.
        answers: Digest of the accepted answers.
        pixels: Digest of each picture's pixels.
        shapes: Difference hash of each picture.
    """

    question: bytes
    answers: bytes
    pixels: tuple[bytes, ...]
    shapes: tuple[int, ...]


class Match(NamedTuple):
    """A row and the one it matches, by index.

    Attributes:
        row: The row.
        other: The earlier row of the same set, or the row of the other set.
        kind: `same`: pictures and question; `picture`: the very pixels, under another question.
    """

    row: int
    other: int
    kind: Literal["same", "picture"]


def text_digest(*texts: str) -> bytes:
    """Equal for texts that differ in spaces, capitals, Unicode spelling or a closing mark only."""
    plain = ("".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".?!") for text in texts)
    return hashlib.blake2b("\0".join(plain).encode(), digest_size=16).digest()


def duplicates(rows: Sequence[Identity]) -> list[Match]:
    """Rows whose pictures and question an earlier row has, in order.

    Copies of a picture that only look alike count when the accepted answers agree too: drawings made from one template
    differ in a digit.
    """
    found: dict[int, Match] = {}
    first: dict[tuple[bytes, tuple[bytes, ...]], int] = {}
    groups: dict[tuple[bytes, bytes, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        earlier = first.setdefault((row.question, row.pixels), index)
        if earlier != index:
            found[index] = Match(index, earlier, "same")
        elif row.shapes:
            groups[row.question, row.answers, len(row.shapes)].append(index)
    for members in groups.values():
        shapes = _shapes(rows, members)
        for position in range(1, len(members)):
            if (earlier := _near(shapes[position], shapes[:position])) is not None:
                found[members[position]] = Match(members[position], members[earlier], "same")
    return [found[index] for index in sorted(found)]


def overlaps(rows: Sequence[Identity], others: Sequence[Identity]) -> Iterator[Match]:
    """Rows that another set has too, and rows that only share their very pictures with it."""
    groups: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    pictures: dict[bytes, int] = {}
    for index, other in enumerate(others):
        groups[other.question, len(other.shapes)].append(index)
        for pixels in other.pixels:
            pictures.setdefault(pixels, index)
    shapes = {key: _shapes(others, members) for key, members in groups.items()}
    for index, row in enumerate(rows):
        key = row.question, len(row.shapes)
        twin = _near(_words(row.shapes), shapes[key]) if key in groups else None
        if twin is not None:
            yield Match(index, groups[key][twin], "same")
        elif shared := [pictures[pixels] for pixels in row.pixels if pixels in pictures]:
            yield Match(index, shared[0], "picture")


def _shapes(rows: Sequence[Identity], members: Sequence[int]) -> np.ndarray:
    """Hashes of the members' pictures, (members, pictures, words)."""
    return np.stack([_words(rows[member].shapes) for member in members])


def _words(shapes: Sequence[int]) -> np.ndarray:
    raw = b"".join(shape.to_bytes(SHAPE_BITS // 8) for shape in shapes)
    return np.frombuffer(raw, dtype=np.uint64).reshape(len(shapes), -1) if shapes else np.zeros((0, 1), np.uint64)


def _near(one: np.ndarray, many: np.ndarray) -> int | None:
    """Index of the first of `many` all of whose pictures look like those of `one`; rows without pictures are alike."""
    distances = np.bitwise_count(many ^ one).sum(axis=2)
    alike = (distances <= NEAR).all(axis=1)
    return int(alike.argmax()) if alike.any() else None
