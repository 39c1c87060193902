"""Scenes: captions, splits, corruption."""

import random

import pytest

from prism_cli.worlds import scenes

SCENE = {"a1": "red square", "b2": "blue circle", "c3": "green triangle"}


def test_a_caption_lists_things_in_reading_order():
    shuffled = {"c3": "green triangle", "a1": "red square", "b2": "blue circle"}
    assert scenes.caption(shuffled) == "a1 red square , b2 blue circle , c3 green triangle"


def test_a_caption_reads_back_whatever_the_order_and_blanks():
    assert scenes.read_caption("c3 green triangle,a1  Red square , b2 blue circle ") == SCENE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a1 red",
        "a1 red square blue",
        "d1 red square",
        "a1 pink square",
        "a1 red square ,",
        "a1 red square , a1 red square",
        "a1 red square b2 blue circle",
        "i can not see the picture",
    ],
)
def test_what_is_no_caption_reads_as_none(text):
    assert scenes.read_caption(text) is None


def test_a_scene_stays_in_its_split_whatever_the_order_of_its_things():
    rng = random.Random(0)
    for split in ("train", "tune", "test"):
        scene = scenes.sample_scene(rng, split)
        assert scenes.split_of(scene) == scenes.split_of(dict(reversed(scene.items()))) == split


def test_splits_are_eighty_ten_ten():
    rng = random.Random(1)
    drawn = [
        scenes.split_of({cell: rng.choice(scenes.THINGS) for cell in rng.sample(scenes.CELLS, 4)}) for _ in range(5000)
    ]
    # Four standard deviations of a binomial share: 0.017 at 0.1, 0.023 at 0.8.
    assert abs(drawn.count("train") / 5000 - 0.8) < 0.023
    assert abs(drawn.count("tune") / 5000 - 0.1) < 0.017


def test_scenes_hold_three_to_six_things():
    rng = random.Random(2)
    assert {len(scenes.sample_scene(rng, "train")) for _ in range(200)} == {3, 4, 5, 6}


def test_corruption_swaps_colour_or_shape_of_every_thing_at_rate_one_and_of_none_at_zero():
    rng = random.Random(3)
    seen = scenes.corrupt(SCENE, 1.0, rng)
    assert list(seen) == list(SCENE)
    for cell, thing in SCENE.items():
        same_words = [a == b for a, b in zip(thing.split(), seen[cell].split(), strict=True)]
        assert sorted(same_words) == [False, True]
        assert seen[cell] in scenes.THINGS
    assert scenes.corrupt(SCENE, 0.0, rng) == SCENE
