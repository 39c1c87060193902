"""Questions about a scene: ask one, read one, reason to its answer."""

import random
import re
from collections.abc import Mapping
from typing import NamedTuple

from prism_cli.errors import DataError
from prism_cli.worlds.scenes import CELLS, COLUMNS, CORNERS, ROWS, THINGS

KINDS = ("at", "neighbour", "corners")
NOTHING = "nothing"
DIRECTIONS = {"right of": (1, 0), "left of": (-1, 0), "above": (0, -1), "below": (0, 1)}
CORNER_SUMS = tuple(str(total) for total in sorted({a + b for a in CORNERS.values() for b in CORNERS.values()}))
EMPTY_SHARE = 0.2  # of the at and neighbour questions; uniform cells would make "nothing" half of all answers

_CELL = f"([{COLUMNS}][{ROWS}])"
_FORMS = {
    "at": re.compile(f"what is at {_CELL}"),
    "neighbour": re.compile(f"what is ({'|'.join(DIRECTIONS)}) {_CELL}"),
    "corners": re.compile(f"corners of {_CELL} plus corners of {_CELL}"),
}


class Question(NamedTuple):
    """A question as read.

    Attributes:
        kind: `at`, `neighbour` or `corners`.
        cells: The cells it names.
        target: The cell an `at` or `neighbour` question asks for; None for `corners`.
        direction: Where a neighbour lies, else None.
    """

    kind: str
    cells: tuple[str, ...]
    target: str | None = None
    direction: str | None = None


class Reasoning(NamedTuple):
    """Steps and the final answer they lead to."""

    think: str
    answer: str


def read_question(text: str) -> Question:
    """Reads a question; case, blanks and the question mark don't matter.

    Raises:
        DataError: it is no question of this world, or points off the grid.
    """
    plain = " ".join(text.lower().replace("?", " ").split())
    matches = [(kind, match) for kind, form in _FORMS.items() if (match := form.fullmatch(plain))]
    if not matches:
        raise DataError(
            f"no question of the shapes world: {text[:80]!r}",
            hint="ask `what is at b2 ?`, `what is right of b1 ?` or `corners of b2 plus corners of c1 ?`",
        )
    ((kind, match),) = matches
    if kind != "neighbour":
        return Question(kind, match.groups(), match[1] if kind == "at" else None)
    direction, cell = match.groups()
    target = neighbour(cell, direction)
    if target is None:
        raise DataError(f"nothing can be {direction} {cell}: it is off the grid", hint="ask for a cell on the 3×3 grid")
    return Question(kind, (cell,), target, direction)


def neighbour(cell: str, direction: str) -> str | None:
    """The next cell in this direction; None off the grid."""
    right, down = DIRECTIONS[direction]
    column, row = COLUMNS.index(cell[0]) + right, ROWS.index(cell[1]) + down
    return COLUMNS[column] + ROWS[row] if 0 <= column < len(COLUMNS) and 0 <= row < len(ROWS) else None


_NEIGHBOURS = [(d, cell, target) for d in DIRECTIONS for cell in CELLS if (target := neighbour(cell, d))]


def ask(scene: Mapping[str, str], rng: random.Random) -> str:
    """Draws a question about the scene, each kind equally often, with no answer in the majority."""
    kind = rng.choice(KINDS)
    if kind == "corners":
        first, second = rng.sample(list(scene), 2)
        return f"corners of {first} plus corners of {second} ?"
    empty = rng.random() < EMPTY_SHARE
    if kind == "at":
        return f"what is at {rng.choice([cell for cell in CELLS if (cell not in scene) == empty])} ?"
    direction, cell, _ = rng.choice([place for place in _NEIGHBOURS if (place[2] not in scene) == empty])
    return f"what is {direction} {cell} ?"


def reason(scene: Mapping[str, str], question: str, slip: random.Random | None = None) -> Reasoning:
    """Looks up what the question needs in the scene, then computes.

    Args:
        scene: Cell → thing, as seen; a cell that is absent holds nothing (0 corners).
        question: As asked.
        slip: When given, the last step goes wrong, and the answer follows the wrong step.

    Raises:
        DataError: it is no question of this world.
    """
    asked = read_question(question)
    if asked.target is None:
        shapes = [scene.get(cell, NOTHING).split()[-1] for cell in asked.cells]
        counts = [CORNERS.get(shape, 0) for shape in shapes]
        looked_up = [f"{c} holds {s} {n}" for c, s, n in zip(asked.cells, shapes, counts, strict=True)]
        answer = str(sum(counts))
        if slip:
            answer = slip.choice([total for total in CORNER_SUMS if total != answer])
        return Reasoning(" , ".join([*looked_up, f"{counts[0]} plus {counts[1]} is {answer}"]), answer)
    answer = scene.get(asked.target, NOTHING)
    if slip:
        answer = slip.choice(sorted({*scene.values(), NOTHING} - {answer}))
    found = f"{asked.target} holds {answer}"
    if asked.direction:
        found = f"{asked.direction} {asked.cells[0]} is {asked.target} , {found}"
    return Reasoning(found, answer)


def answer_from(scene: Mapping[str, str], question: str) -> str:
    """The right answer if the scene were so.

    Raises:
        DataError: it is no question of this world.
    """
    return reason(scene, question).answer


def guess(question: str, rng: random.Random) -> str:
    """An answer of the right kind from someone who doesn't see the picture."""
    return rng.choice(CORNER_SUMS if read_question(question).kind == "corners" else (*THINGS, NOTHING))
