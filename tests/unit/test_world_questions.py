"""Questions: reading, answering, slipping, and how far a blind guess gets."""

import random
from collections import Counter

import pytest

from prism_cli.errors import DataError
from prism_cli.worlds import questions, scenes

SCENE = {"a1": "red square", "b2": "blue circle", "c3": "green triangle"}


@pytest.mark.parametrize(
    ("question", "think", "answer"),
    [
        ("what is at b2 ?", "b2 holds blue circle", "blue circle"),
        ("what is at b1 ?", "b1 holds nothing", "nothing"),
        ("what is right of a2 ?", "right of a2 is b2 , b2 holds blue circle", "blue circle"),
        ("what is left of b1 ?", "left of b1 is a1 , a1 holds red square", "red square"),
        ("what is above a2 ?", "above a2 is a1 , a1 holds red square", "red square"),
        ("what is below c2 ?", "below c2 is c3 , c3 holds green triangle", "green triangle"),
        ("corners of a1 plus corners of c3 ?", "a1 holds square 4 , c3 holds triangle 3 , 4 plus 3 is 7", "7"),
        ("corners of b2 plus corners of b2 ?", "b2 holds circle 0 , b2 holds circle 0 , 0 plus 0 is 0", "0"),
        ("corners of a1 plus corners of b1 ?", "a1 holds square 4 , b1 holds nothing 0 , 4 plus 0 is 4", "4"),
        (" What is at  B2?", "b2 holds blue circle", "blue circle"),
    ],
)
def test_reasoning_looks_up_then_computes(question, think, answer):
    assert questions.reason(SCENE, question) == (think, answer)
    assert questions.answer_from(SCENE, question) == answer


@pytest.mark.parametrize("text", ["", "how many squares ?", "what is at d1 ?", "what is at b2 ? and more", "at b2"])
def test_a_foreign_question_is_a_data_error_that_shows_the_forms(text):
    with pytest.raises(DataError) as caught:
        questions.answer_from(SCENE, text)
    assert "what is at b2 ?" in caught.value.hint


@pytest.mark.parametrize("text", ["what is right of c1 ?", "what is above a1 ?", "what is below b3 ?"])
def test_a_neighbour_off_the_grid_is_a_data_error(text):
    with pytest.raises(DataError, match="off the grid"):
        questions.answer_from(SCENE, text)


@pytest.mark.parametrize(
    "question", ["what is at b2 ?", "what is at b1 ?", "what is below c2 ?", "corners of a1 plus corners of c3 ?"]
)
def test_a_slip_always_ends_wrong_and_the_answer_follows_the_think(question):
    for seed in range(50):
        think, answer = questions.reason(SCENE, question, slip=random.Random(seed))
        assert answer != questions.answer_from(SCENE, question)
        assert think.endswith(answer)


def test_a_slip_is_possible_even_when_all_things_are_alike():
    alike = {"a1": "red square", "b2": "red square"}
    assert questions.reason(alike, "what is at a1 ?", slip=random.Random(0)).answer == "nothing"


def _asked(count=6000):
    rng = random.Random(7)
    for _ in range(count):
        scene = scenes.sample_scene(rng, "train")
        question = questions.ask(scene, rng)
        yield questions.read_question(question).kind, question, questions.answer_from(scene, question)


def test_kinds_are_equally_frequent_and_no_answer_dominates():
    by_kind = {kind: Counter() for kind in questions.KINDS}
    for kind, _, answer in _asked():
        by_kind[kind][answer] += 1
    for kind, answers in by_kind.items():
        assert 1850 < answers.total() < 2150, kind  # 2,000 ± 4 standard deviations
        assert answers.most_common(1)[0][1] < 0.26 * answers.total(), kind
    assert by_kind["at"].keys() == by_kind["neighbour"].keys() == {*scenes.THINGS, "nothing"}
    assert by_kind["corners"].keys() == set(questions.CORNER_SUMS) == {"0", "3", "4", "6", "7", "8"}


def test_the_best_blind_guess_for_each_question_text_stays_under_45_percent():
    answers = {}
    asked = list(_asked())
    for _, question, answer in asked[:5000]:
        answers.setdefault(question, Counter())[answer] += 1
    best = {question: counts.most_common(1)[0][0] for question, counts in answers.items()}
    held_out = asked[5000:]
    assert sum(best.get(question) == answer for _, question, answer in held_out) < 0.45 * len(held_out)


def test_a_guess_is_of_the_questions_kind():
    rng = random.Random(0)
    assert {questions.guess("corners of a1 plus corners of c3 ?", rng) for _ in range(200)} == set(
        questions.CORNER_SUMS
    )
    assert {questions.guess("what is at b2 ?", rng) for _ in range(500)} == {*scenes.THINGS, "nothing"}
