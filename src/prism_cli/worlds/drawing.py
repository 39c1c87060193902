"""Pictures of scenes: draw one, and read one back from its pixels alone."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from prism_cli.errors import DataError
from prism_cli.worlds.scenes import CELLS, COLUMNS, CORNERS, ROWS, Scene

CELL = 16
WIDTH, HEIGHT = CELL * len(COLUMNS), CELL * len(ROWS)
JITTER = 1
NOISE_STD = 6.0
BACKGROUND = np.full(3, 128.0, dtype=np.float32)
# Each differs from the background in brightness too: JPEG keeps only a quarter of the colour samples.
PALETTE = {"red": (200, 30, 30), "green": (20, 130, 30), "blue": (40, 60, 220), "yellow": (240, 220, 40)}

# Halfway from the background to the nearest colour (distance 146).
_FOREGROUND = 70.0
_LEAST_PIXELS = 20
_LEAST_AGREEMENT = 0.88
_WORST_COLOUR = 70.0


def _shape_mask(shape: str, right: int, down: int) -> np.ndarray:
    y, x = np.mgrid[:CELL, :CELL] - 7.5
    x, y = x - right, y - down
    if shape == "square":
        return (abs(x) < 5) & (abs(y) < 5)
    if shape == "circle":
        return x**2 + y**2 < 5.6**2
    return (abs(y) < 6) & (abs(x) < 0.5 * (y + 6.6))  # triangle, tip up, 12 wide and 12 high


_OFFSETS = range(-JITTER, JITTER + 1)
_MASKS = {(shape, dx, dy): _shape_mask(shape, dx, dy) for shape in CORNERS for dx in _OFFSETS for dy in _OFFSETS}
_TEMPLATE_SHAPES = [shape for shape, _, _ in _MASKS]
_TEMPLATES = np.stack([mask.ravel() for mask in _MASKS.values()]).astype(np.float32) * 2 - 1
_COLOUR_NAMES = list(PALETTE)
_COLOUR_VALUES = np.array(list(PALETTE.values()), dtype=np.float32)


def draw(scene: Mapping[str, str], rng: np.random.Generator) -> Image.Image:
    """A 48×48 RGB picture of the scene; `rng` moves each thing by up to one pixel and adds noise."""
    canvas = np.empty((HEIGHT, WIDTH, 3), dtype=np.float32)
    canvas[:] = BACKGROUND
    offsets = rng.integers(-JITTER, JITTER + 1, size=(len(scene), 2)).tolist()
    for (cell, thing), (dx, dy) in zip(scene.items(), offsets, strict=True):
        colour, shape = thing.split()
        left, top = COLUMNS.index(cell[0]) * CELL, ROWS.index(cell[1]) * CELL
        canvas[top : top + CELL, left : left + CELL][_MASKS[shape, dx, dy]] = PALETTE[colour]
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * NOISE_STD
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def pixels_of(image: Image.Image) -> np.ndarray:
    """The picture as (48, 48, 3) bytes; a picture of another size is scaled first.

    Raises:
        DataError: the file behind the picture is broken.
    """
    try:
        picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the picture can't be read: {error}", hint="send a whole PNG or JPEG file") from error
    if picture.size != (WIDTH, HEIGHT):
        picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    return np.asarray(picture)


def decode(pixels: np.ndarray) -> Scene:
    """The scene a picture shows, read from (48, 48, 3) pixels: each cell's silhouette and mean colour.

    Raises:
        DataError: a cell holds something this world does not draw, or all cells are empty.
    """
    grid = pixels.astype(np.float32).reshape(len(ROWS), CELL, len(COLUMNS), CELL, 3)
    cells = grid.transpose(0, 2, 1, 3, 4).reshape(len(CELLS), CELL * CELL, 3)
    foreground = np.square(cells - BACKGROUND).sum(axis=2) > _FOREGROUND**2
    agreement = ((foreground * 2.0 - 1) @ _TEMPLATES.T / (CELL * CELL) + 1) / 2
    counts = foreground.sum(axis=1)
    means = (cells * foreground[..., None]).sum(axis=1) / np.maximum(counts, 1)[:, None]
    distances = np.linalg.norm(means[:, None] - _COLOUR_VALUES, axis=2)
    scene: Scene = {}
    for i in np.flatnonzero(counts >= _LEAST_PIXELS):
        template, colour = agreement[i].argmax(), distances[i].argmin()
        if agreement[i, template] < _LEAST_AGREEMENT or distances[i, colour] > _WORST_COLOUR:
            raise DataError(f"the picture's cell {CELLS[i]} holds nothing this world draws", hint=_PICTURE_HINT)
        scene[CELLS[i]] = f"{_COLOUR_NAMES[colour]} {_TEMPLATE_SHAPES[template]}"
    if not scene:
        raise DataError("the picture shows no shape in any cell", hint=_PICTURE_HINT)
    return scene


_PICTURE_HINT = "this teacher reads only pictures drawn by the shapes world"
