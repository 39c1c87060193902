"""Rows that are the same: twice in one set, or in a training set and an evaluation set."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from prism_cli.data.pictures import SHAPE_BITS

WORDS = SHAPE_BITS // 64
NEAR = 10
"""Bits of 256 in which the hashes of one picture may differ after lossy re-encoding or scaling."""

BANDS = NEAR + 1
"""NEAR differing bits leave one of so many bands as it was, so pictures that look alike agree in a whole one."""


class Identity(NamedTuple):
    """The identity of a row: digests it is recognised by.

    Attributes:
        question: Digest of the whole prompt, however it is spaced and capitalised.
        answers: Digest of the accepted answers; None where there are none.
        responses: Digest of the texts to learn from, to the letter.
        pixels: Digest of each picture's pixels.
        shapes: Difference hash of each picture.
    """

    question: bytes
    answers: bytes | None
    responses: bytes
    pixels: tuple[bytes, ...]
    shapes: tuple[int, ...]


class Match(NamedTuple):
    """A row and the one it matches, by index.

    Attributes:
        row: The row.
        other: The earlier row of the same set, or the row of the other set.
        kind: `same`: pictures and question, within one set also answers and responses; `asked`: pictures and question,
            but other answers or responses; `alike`: the question of pictures that look alike, with other answers;
            `picture`: the very pixels, under another question.
    """

    row: int
    other: int
    kind: Literal["same", "asked", "alike", "picture"]


def text_digest(*texts: str) -> bytes:
    """Equal for texts that differ in how many blanks stand somewhere, capitals, Unicode spelling or a closing mark."""
    plain = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".?! ") for text in texts)
    return exact_digest(*plain)


def exact_digest(*texts: str | None) -> bytes:
    """Equal for equal texts."""
    return hashlib.blake2b(repr(texts).encode(), digest_size=16).digest()


def duplicates(rows: Sequence[Identity]) -> list[Match]:
    """Rows that are the same as an earlier row, or ask the same as it, in order.

    Pictures that only look alike count when all that is said of them agrees: drawings made from one template differ in
    a digit.
    """
    same = _exact(rows, _says)
    same |= _alike(rows, [index for index in range(len(rows)) if index not in same])
    asked = _exact(rows, lambda row: row.question)
    return [
        Match(index, same[index], "same") if index in same else Match(index, asked[index], "asked")
        for index in sorted(same.keys() | asked.keys())
    ]


def _says(row: Identity) -> Hashable:
    return row.question, row.answers, row.responses


def _exact(rows: Sequence[Identity], says: Callable[[Identity], Hashable]) -> dict[int, int]:
    """Row → the first one of its very pictures that says the same."""
    first: dict[Hashable, int] = {}
    earlier = (first.setdefault((says(row), row.pixels), index) for index, row in enumerate(rows))
    return {index: other for index, other in enumerate(earlier) if other != index}


def _alike(rows: Sequence[Identity], members: Sequence[int]) -> dict[int, int]:
    """Row → an earlier one of pictures that look alike, which says the same; among the members that have pictures."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in members:
        if rows[index].shapes:
            groups[_says(rows[index]), len(rows[index].shapes)].append(index)
    found: dict[int, int] = {}
    for group in groups.values():
        if len(group) > 1:
            shapes = _shapes(rows, group)
            for position, earlier in enumerate(_first_alike(shapes, shapes)):
                if earlier is not None and earlier < position:
                    found[group[position]] = group[earlier]
    return found


def overlaps(rows: Sequence[Identity], others: Sequence[Identity]) -> Iterator[Match]:
    """Rows that another set has too, that ask the same of pictures that look alike, or only share their pictures."""
    exact: dict[Hashable, int] = {}
    pictures: dict[bytes, int] = {}
    for index, other in enumerate(others):
        exact.setdefault((other.question, other.pixels), index)
        for pixels in other.pixels:
            pictures.setdefault(pixels, index)
    same = _twins(rows, others, lambda row: (row.question, row.answers))
    alike = _twins(rows, others, lambda row: row.question)
    for index, row in enumerate(rows):
        found = exact.get((row.question, row.pixels), same.get(index))
        if found is not None:
            yield Match(index, found, "same")
        elif (found := alike.get(index)) is not None:
            # Drawings of one template look alike; where an answer is not known, a copy is the safer guess.
            differ = row.answers is not None and others[found].answers is not None
            yield Match(index, found, "alike" if differ else "same")
        elif shared := [pictures[pixels] for pixels in row.pixels if pixels in pictures]:
            yield Match(index, shared[0], "picture")


def _twins(
    rows: Sequence[Identity], others: Sequence[Identity], says: Callable[[Identity], Hashable]
) -> dict[int, int]:
    """Row → the first of the others that says the same of pictures that look alike."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, other in enumerate(others):
        groups[says(other), len(other.shapes)].append(index)
    asking: dict[Hashable, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if (key := (says(row), len(row.shapes))) in groups:
            asking[key].append(index)
    found: dict[int, int] = {}
    for key, members in asking.items():
        twins = _first_alike(_shapes(rows, members), _shapes(others, groups[key]))
        found |= {row: groups[key][twin] for row, twin in zip(members, twins, strict=True) if twin is not None}
    return found


# Pictures that look alike --------------------------------------------------------------------------------------------


def _shapes(rows: Sequence[Identity], members: Sequence[int]) -> np.ndarray:
    """Hashes of the members' pictures, (members, pictures × words)."""
    raw = b"".join(shape.to_bytes(SHAPE_BITS // 8) for member in members for shape in rows[member].shapes)
    return np.frombuffer(raw, dtype=np.uint64).reshape(len(members), -1)


def _first_alike(ones: np.ndarray, many: np.ndarray) -> list[int | None]:
    """For each of `ones` the index of the first of `many` all of whose pictures look like its own.

    Only those that agree with it in a band of the first picture are compared. Rows without pictures are alike.
    """
    if not many.shape[1]:
        return [0] * len(ones)
    ones, back = np.unique(ones, axis=0, return_inverse=True)
    many, first = np.unique(many, axis=0, return_index=True)
    keys, wanted = _band_keys(many), _band_keys(ones)
    order = keys.argsort(axis=0)
    keys = np.take_along_axis(keys, order, axis=0)
    starts, ends = (
        np.stack([keys[:, band].searchsorted(wanted[:, band], side) for band in range(BANDS)], axis=1)
        for side in ("left", "right")
    )
    columns = np.ascontiguousarray(many.T).reshape(-1, WORDS, len(many))
    found: list[int | None] = []
    for one, begin, end in zip(ones, starts, ends, strict=True):
        if 4 * (end - begin).sum() < len(many):  # picking out costs more than comparing
            some = np.concatenate([order[b:e, band] for band, (b, e) in enumerate(zip(begin, end, strict=True))])
        else:
            some = slice(None)
        bits = np.bitwise_count(columns[:, :, some] ^ one.reshape(-1, WORDS, 1))
        alike = first[some][(bits.sum(axis=1, dtype=np.uint16) <= NEAR).all(axis=0)]
        found.append(int(alike.min()) if len(alike) else None)
    return [found[index] for index in back.reshape(-1)]


def _band_keys(shapes: np.ndarray) -> np.ndarray:
    """The bits of each band of the first pictures, (rows, bands), in one number.

    A band takes its bits from all over the picture, so that a white margin is no whole band.
    """
    bits = np.unpackbits(shapes[:, :WORDS].copy().view(np.uint8), axis=1)
    bits = np.pad(bits, ((0, 0), (0, -SHAPE_BITS % BANDS))).reshape(len(shapes), -1, BANDS)
    weights = np.uint32(1) << np.arange(bits.shape[1], dtype=np.uint32)
    return np.einsum("rbk,b->rk", bits, weights, dtype=np.uint32)
