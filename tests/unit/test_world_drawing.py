"""Pictures: what is drawn is read back from the pixels, also through JPEG and other sizes."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from prism_cli.errors import DataError
from prism_cli.worlds import world
from prism_cli.worlds.drawing import PALETTE, decode, draw, pixels_of
from prism_cli.worlds.scenes import THINGS


@pytest.fixture(scope="module")
def examples():
    return world("shapes").examples("train", 2000, seed=11)


def _right(examples, change):
    return sum(decode(pixels_of(change(e.image))) == json.loads(e.truth)["objects"] for e in examples)


def _jpeg(image, subsampling):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75, subsampling=subsampling)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("thing", THINGS)
def test_every_thing_reads_back_from_every_corner_of_the_jitter(thing):
    for seed in range(30):
        scene = {"a1": thing, "b2": "red square", "c3": thing}
        assert decode(pixels_of(draw(scene, np.random.default_rng(seed)))) == scene


def test_a_picture_is_48_pixels_grey_with_the_things_colour_in_its_cell():
    image = draw({"b1": "blue square"}, np.random.default_rng(0))
    assert (image.size, image.mode) == ((48, 48), "RGB")
    pixels = np.asarray(image).astype(float)
    np.testing.assert_allclose(pixels[6:10, 22:26].mean((0, 1)), PALETTE["blue"], atol=6)
    np.testing.assert_allclose(pixels[16:].mean((0, 1)), 128, atol=2)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_scenes_survive_jpeg(examples, subsampling):
    assert _right(examples, lambda image: _jpeg(image, subsampling)) >= 1998


@pytest.mark.parametrize("side", [40, 96, 448])
def test_scenes_survive_another_size(examples, side):
    few = examples[:200]
    assert _right(few, lambda image: image.resize((side, side), Image.Resampling.BICUBIC)) == len(few)


def _noise(rng):
    return rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((48, 48, 3), np.uint8),
        np.full((48, 48, 3), 255, np.uint8),
        _noise(np.random.default_rng(0)),
        np.repeat(np.repeat(np.linspace(0, 255, 48).astype(np.uint8)[:, None, None], 48, 1), 3, 2),
    ],
    ids=["black", "white", "noise", "gradient"],
)
def test_a_foreign_picture_is_a_data_error_naming_the_cell(pixels):
    with pytest.raises(DataError, match=r"cell [abc][123]"):
        decode(pixels)


def test_an_empty_picture_is_a_data_error():
    with pytest.raises(DataError, match="no shape"):
        decode(np.full((48, 48, 3), 128, np.uint8))


def test_a_right_shape_in_a_wrong_colour_is_a_data_error():
    pixels = np.full((48, 48, 3), 128, np.uint8)
    pixels[3:13, 3:13] = (255, 0, 255)
    with pytest.raises(DataError, match="cell a1"):
        decode(pixels)


def test_a_truncated_file_is_a_data_error(examples):
    file = io.BytesIO()
    examples[0].image.save(file, "PNG")
    with pytest.raises(DataError, match="can't be read"):
        pixels_of(Image.open(io.BytesIO(file.getvalue()[:1000])))
