"""The shapes world: examples, the oracle and its variants, demonstrations, the verdicts."""

import json
import math

import pytest

from prism_cli.errors import DataError
from prism_cli.worlds import world
from prism_cli.worlds.scenes import caption, split_of

SHAPES = world("shapes")
TRUTH = json.dumps(
    {
        "kind": "at",
        "objects": {"a1": "red square", "b2": "blue circle", "c3": "green triangle"},
        "answer": "blue circle",
    }
)
QUESTION = "what is at b2 ?"
RIGHT = {"caption": "a1 red square , b2 blue circle , c3 green triangle", "answer": "blue circle"}


@pytest.fixture(scope="module")
def examples():
    return SHAPES.examples("tune", 1000, seed=5)


def _near(count, total, share):
    """Whether a binomial count lies within four standard deviations of its mean."""
    return abs(count - total * share) < 4 * math.sqrt(total * share * (1 - share))


def _objects(example):
    return json.loads(example.truth)["objects"]


def test_an_unknown_world_is_an_error_naming_the_known():
    with pytest.raises(DataError) as caught:
        world("circles")
    assert "shapes" in caught.value.hint


def test_an_unknown_split_is_an_error_not_a_search_without_end():
    with pytest.raises(DataError, match="validation"):
        SHAPES.examples("validation", 1, seed=0)


def test_a_seed_gives_the_same_examples_and_a_larger_size_only_adds():
    few, more = SHAPES.examples("train", 5, seed=1), SHAPES.examples("train", 9, seed=1)
    assert [e._replace(image=e.image.tobytes()) for e in few] == [e._replace(image=e.image.tobytes()) for e in more[:5]]
    assert SHAPES.examples("train", 5, seed=2)[0].truth != few[0].truth


def test_ids_are_unique_over_splits_and_seeds():
    ids = [e.id for split in ("train", "tune", "test") for seed in (0, 1) for e in SHAPES.examples(split, 50, seed)]
    assert len(set(ids)) == 300


def test_no_scene_is_in_two_splits_whatever_the_seeds():
    seen = {split: set() for split in ("train", "tune", "test")}
    for split, captions in seen.items():
        for seed in range(4):
            drawn = [_objects(e) for e in SHAPES.examples(split, 200, seed)]
            assert all(split_of(scene) == split for scene in drawn)
            captions.update(caption(scene) for scene in drawn)
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["tune"]
    assert not seen["tune"] & seen["test"]


def test_the_oracle_tells_the_truth_from_pixels(examples):
    for e in examples:
        verdict = SHAPES.verdicts(SHAPES.oracle(e.question, e.image), e.question, e.truth)
        assert verdict == {"perception": True, "reasoning": True, "accuracy": True}, e.id


def test_a_variant_repeats_itself_and_another_seed_does_not(examples):
    for variant in ("weak_perception", "weak_reasoning", "text_only"):
        first = [SHAPES.oracle(e.question, e.image, variant, seed=1) for e in examples[:40]]
        assert first == [SHAPES.oracle(e.question, e.image, variant, seed=1) for e in examples[:40]]
        assert first != [SHAPES.oracle(e.question, e.image, variant, seed=2) for e in examples[:40]]


def test_a_weak_eye_misses_a_quarter_of_the_things_and_reasons_from_what_it_saw(examples):
    missed = total = 0
    for e in examples:
        blocks = SHAPES.oracle(e.question, e.image, "weak_perception", seed=0)
        assert SHAPES.verdicts(blocks, e.question, e.truth)["reasoning"]
        items, true = blocks["caption"].split(" , "), caption(_objects(e)).split(" , ")
        missed += sum(a != b for a, b in zip(items, true, strict=True))
        total += len(true)
    assert _near(missed, total, 0.25)


def test_a_weak_reasoner_sees_all_and_slips_in_forty_percent(examples):
    verdicts = [
        SHAPES.verdicts(SHAPES.oracle(e.question, e.image, "weak_reasoning", seed=0), e.question, e.truth)
        for e in examples
    ]
    assert all(v["perception"] for v in verdicts)
    assert all(v["reasoning"] == v["accuracy"] for v in verdicts)
    assert _near(sum(not v["accuracy"] for v in verdicts), len(verdicts), 0.4)


def test_a_text_only_teacher_is_mostly_wrong_and_the_same_without_the_picture(examples):
    right = 0
    for e in examples:
        blocks = SHAPES.oracle(e.question, None, "text_only", seed=0)
        assert blocks == SHAPES.oracle(e.question, e.image, "text_only", seed=0)
        verdict = SHAPES.verdicts(blocks, e.question, e.truth)
        assert not verdict["perception"]
        assert not verdict["reasoning"]
        right += verdict["accuracy"]
    assert 0 < right < 0.2 * len(examples)


def test_a_missing_picture_and_an_unknown_variant_are_errors(examples):
    with pytest.raises(DataError, match="without its picture"):
        SHAPES.oracle(QUESTION, None)
    with pytest.raises(DataError, match="strong"):
        SHAPES.oracle(QUESTION, examples[0].image, "strong")


def test_demonstrations_are_the_public_mixture(examples):
    blocks = [SHAPES.demonstration(e, seed=0) for e in examples]
    assert blocks == [SHAPES.demonstration(e, seed=0) for e in examples]
    verdicts = [SHAPES.verdicts(b, e.question, e.truth) for b, e in zip(blocks, examples, strict=True)]
    assert _near(sum(b["think"].startswith("the answer is") for b in blocks), 1000, 0.5)
    assert _near(sum(not v["reasoning"] for v in verdicts), 1000, 0.2)
    # A corrupted caption of n things stays right with 0.75ⁿ, n uniform in 3…6.
    unscathed = sum(0.75**n for n in (3, 4, 5, 6)) / 4
    assert _near(sum(not v["perception"] for v in verdicts), 1000, 0.5 * (1 - unscathed))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (True, True, True)),
        ({"caption": "c3 green triangle , a1 red square , b2 blue circle"}, (True, True, True)),
        ({"answer": " Blue  circle "}, (True, True, True)),
        ({"answer": "red square"}, (True, False, False)),
        ({"caption": "a1 red square , b2 red circle , c3 green triangle"}, (False, False, True)),
        (
            {"caption": "a1 red square , b2 red circle , c3 green triangle", "answer": "red circle"},
            (False, True, False),
        ),
        ({"caption": "b2 blue circle"}, (False, True, True)),
        ({"caption": "a1 red square , c3 green triangle", "answer": "nothing"}, (False, True, False)),
        ({"caption": "blue circle"}, (False, False, True)),
    ],
)
def test_the_judge_tells_perception_reasoning_and_accuracy_apart(change, expected):
    verdict = SHAPES.verdicts(RIGHT | change, QUESTION, TRUTH)
    assert (verdict["perception"], verdict["reasoning"], verdict["accuracy"]) == expected


def test_a_malformed_response_is_right_in_nothing():
    assert not any(SHAPES.verdicts({}, QUESTION, TRUTH).values())


def test_the_vocabulary_spells_every_text_and_nothing_else(examples):
    written = set()
    for e in examples:
        variants = [
            SHAPES.oracle(e.question, e.image, v) for v in ("exact", "weak_perception", "weak_reasoning", "text_only")
        ]
        for text in [
            e.question,
            e.answer,
            *(t for b in [*variants, SHAPES.demonstration(e, 0)] for t in b.values()),
        ]:
            assert text == " ".join(text.split())
            written.update(text.split())
    # The numbers 1, 2 and 5 are no sum of two shapes' corners.
    assert set(SHAPES.vocabulary) - written == {"1", "2", "5"}
    assert not written - set(SHAPES.vocabulary)
    assert len(SHAPES.vocabulary) < 90


def test_the_probes_pictures_have_different_answers_and_the_oracle_gives_both():
    for question, images, answers, captions in SHAPES.probe():
        assert answers[0] != answers[1]
        assert tuple(SHAPES.oracle(question, image)["answer"] for image in images) == answers
        assert tuple(SHAPES.oracle(question, None, told=caption)["answer"] for caption in captions) == answers


def test_the_probe_is_the_same_every_time():
    first, again = SHAPES.probe(), SHAPES.probe()
    assert [(p.question, p.answers, p.captions) for p in first] == [(p.question, p.answers, p.captions) for p in again]
    assert all((a.images[0].tobytes() == b.images[0].tobytes()) for a, b in zip(first, again, strict=True))


def test_who_is_told_the_picture_reasons_from_what_was_told():
    blocks = SHAPES.oracle("what is at b2 ?", None, "text_only", told="b2 red circle")
    assert blocks == {"caption": "b2 red circle", "think": "b2 holds red circle", "answer": "red circle"}
    with pytest.raises(DataError, match="no caption of the shapes world"):
        SHAPES.oracle("what is at b2 ?", None, "text_only", told="a cat")
