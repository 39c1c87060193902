"""Scenes of the shapes world: a 3×3 grid with a few coloured shapes, their captions, and which split they belong to."""

import hashlib
import random
from collections.abc import Mapping
from typing import Literal

Split = Literal["train", "tune", "test"]
Scene = dict[str, str]  # cell → thing, as "b2" → "blue circle", in reading order; empty cells are absent

COLUMNS, ROWS = "abc", "123"
CELLS = tuple(column + row for row in ROWS for column in COLUMNS)
COLOURS = ("red", "green", "blue", "yellow")
CORNERS = {"square": 4, "triangle": 3, "circle": 0}
THINGS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in CORNERS)
FEWEST, MOST = 3, 6


def caption(scene: Mapping[str, str]) -> str:
    """Every thing by its cell, in reading order: `a1 red square , c3 green triangle`."""
    return " , ".join(f"{cell} {scene[cell]}" for cell in CELLS if cell in scene)


def read_caption(text: str) -> Scene | None:
    """The scene a caption tells, whatever the order of its items; None when it doesn't parse or names a cell twice."""
    scene: Scene = {}
    for item in text.lower().split(","):
        cell, _, thing = " ".join(item.split()).partition(" ")
        if cell not in CELLS or thing not in THINGS or cell in scene:
            return None
        scene[cell] = thing
    return {cell: scene[cell] for cell in CELLS if cell in scene}


def split_of(scene: Mapping[str, str]) -> Split:
    """The split a scene belongs to, whatever the seed: 80 % train, 10 % tune, 10 % test."""
    digest = hashlib.blake2b(caption(scene).encode(), digest_size=8).digest()
    return {0: "test", 1: "tune"}.get(int.from_bytes(digest) % 10, "train")  # type: ignore[return-value]


def sample_scene(rng: random.Random, split: Split) -> Scene:
    """Draws a scene of this split: 3 to 6 things in cells of their own."""
    while True:
        cells = sorted(rng.sample(CELLS, rng.randint(FEWEST, MOST)), key=CELLS.index)
        scene = {cell: rng.choice(THINGS) for cell in cells}
        if split_of(scene) == split:
            return scene


def corrupt(scene: Mapping[str, str], rate: float, rng: random.Random) -> Scene:
    """The scene as a poor eye sees it: each thing, with probability `rate`, has its colour or its shape swapped."""
    return {cell: _misseen(thing, rng) if rng.random() < rate else thing for cell, thing in scene.items()}


def _misseen(thing: str, rng: random.Random) -> str:
    colour, shape = thing.split()
    if rng.random() < 0.5:
        return f"{rng.choice([other for other in COLOURS if other != colour])} {shape}"
    return f"{colour} {rng.choice([other for other in CORNERS if other != shape])}"
