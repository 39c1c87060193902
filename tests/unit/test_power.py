import random

import pytest

from prism_cli.evaluation.intervals import paired_difference, pass_at, spread_of
from prism_cli.evaluation.power import questions_needed, smallest_difference


def test_questions_for_a_difference_by_hand():
    # (1.95996 + 0.84162)² = 7.8489; a question's difference scatters by 0.5, 0.1 is looked for: 7.8489 · 25 = 196.2
    assert questions_needed(0.1, 0.5) == 197
    # Half the difference takes four times the questions.
    assert questions_needed(0.05, 0.5) == 785
    assert smallest_difference(197, 0.5) == pytest.approx(0.1, abs=2e-4)


def test_a_difference_of_nothing_is_never_found():
    with pytest.raises(ValueError, match="above zero"):
        questions_needed(0.0, 0.5)


def test_so_many_questions_find_it_four_times_in_five():
    # Answers right with chances 0.5 and 0.6, independently: deviation √(0.25 + 0.24) = 0.7. 400 simulated evaluations:
    # ± 3 standard errors is 0.74 to 0.86.
    generator = random.Random(3)
    questions = questions_needed(0.1, 0.7)
    found = 0
    for _ in range(400):
        runs = [[[float(generator.random() < chance)] for _ in range(questions)] for chance in (0.5, 0.6)]
        found += paired_difference(*runs).low > 0
    assert 0.74 <= found / 400 <= 0.86


def test_the_scatter_of_two_runs_is_that_of_their_paired_differences():
    # Differences 1, 0, −1, and a question only one answered.
    assert spread_of([[0], [1, 1], [1], [1]], [[1], [1], [0], []]) == (1.0, 3)
    assert spread_of([[0], [1], [0.5, 0.5], []]) == (0.5, 3)
    with pytest.raises(ValueError, match="fewer than two"):
        spread_of([[1], []])


def test_pass_at_k_by_hand():
    # 1 right of 4, two taken: 1 − C(3,2)/C(4,2) = 1 − 3/6. All 4 taken: one is right for sure.
    assert pass_at(2, [[1, 0, 0, 0]]) == [[0.5]]
    assert pass_at(4, [[1, 0, 0, 0], [0, 0, 0, 0]]) == [[1.0], [0.0]]
    # One taken is the share that is right.
    assert pass_at(1, [[1, 0, 1, 0, 0]]) == [[pytest.approx(0.4)]]


def test_pass_at_k_is_what_drawing_k_of_them_gives():
    samples = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    generator = random.Random(1)
    drawn = sum(any(generator.sample(samples, 3)) for _ in range(20_000)) / 20_000
    assert pass_at(3, [samples])[0][0] == pytest.approx(drawn, abs=0.011)


def test_a_question_with_fewer_samples_than_k_says_nothing_about_k():
    assert pass_at(2, [[1], [1, 0]]) == [[], [1.0]]
