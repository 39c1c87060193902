import math
import random

import pytest

from prism_cli.evaluation.intervals import Interval, mean_interval, paired_difference


def test_one_zero_or_one_a_question_gives_wilsons_interval():
    # 5 of 10: centre 0.5, half = z/(1+z²/n) · √(0.25/10 + z²/400) = 1.96/1.38415 · √(0.025+0.0096036) = 0.26341
    assert mean_interval([[1]] * 5 + [[0]] * 5) == pytest.approx((0.5, 0.23659, 0.76341, 10), abs=1e-5)


def test_no_spread_is_no_certainty():
    # n of n: low = n / (n + z²) = 10 / 13.8415 = 0.72247
    assert mean_interval([[1, 1]] * 10) == pytest.approx((1, 0.72247, 1, 10), abs=1e-5)
    assert mean_interval([[0]] * 10) == pytest.approx((0, 0, 0.27753, 10), abs=1e-5)


def test_several_samples_a_question_are_clustered_by_question():
    # Question means 0, 0.5, 1: s = 0.5, t(2) = 4.30265, half = 4.30265 · 0.5/√3 = 1.24207
    spread = mean_interval([[0, 0], [0, 1], [1, 1]])
    assert spread == pytest.approx((0.5, 0.5 - 1.24207, 0.5 + 1.24207, 3), abs=1e-5)
    # Asking each question a hundred times more often adds no questions.
    assert mean_interval([[0] * 100, [0, 1] * 50, [1] * 100]) == pytest.approx(spread)


def test_every_question_weighs_the_same_however_often_it_was_sampled():
    assert mean_interval([[2.0] * 9, [4.0]]).value == 3.0


def test_questions_without_values_are_left_out_and_n_says_so():
    assert mean_interval([[1.5], [], [2.5]])[::3] == (2.0, 2)


def test_one_question_says_nothing_about_others():
    assert mean_interval([[3.5, 4.5]]) == Interval(4.0, -math.inf, math.inf, 1)


@pytest.mark.parametrize("values", [[], [[], []], [[math.nan]], [[1.0], [math.inf]]])
def test_nothing_measured_is_refused(values):
    with pytest.raises(ValueError, match=r"no question|not finite"):
        mean_interval(values)


def test_a_paired_difference_is_b_minus_a_question_by_question():
    # Differences 1, 1, 0, 0: mean 0.5, s = 0.57735, t(3) = 3.18245, half = 3.18245 · 0.57735/2 = 0.91869
    difference = paired_difference([[0], [0], [1], [0, 1]], [[1], [1], [1], [0.5]])
    assert difference == pytest.approx((0.5, -0.41869, 1.41869, 4), abs=1e-5)


def test_pairing_removes_what_questions_share():
    hard_and_easy = [[float(i)] for i in range(100)]
    better = [[i + 1 + 0.1 * (-1) ** i] for i in range(100)]
    paired = paired_difference(hard_and_easy, better)
    assert paired.low > 0
    assert paired.high - paired.low < 0.1 < mean_interval(better).high - mean_interval(better).low


def test_different_questions_are_refused():
    with pytest.raises(ValueError, match="a has 1 questions, b has 2"):
        paired_difference([[1]], [[1], [0]])


def test_a_wider_level_gives_a_wider_interval():
    narrow, wide = (mean_interval([[1.0], [2.0], [4.0]], level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize("samples", [1, 4])
def test_ninety_five_percent_intervals_hold_the_truth_about_that_often(samples):
    # Questions of unequal difficulty, mean 0.6. 300 simulated evaluations: ± 3 standard errors is 0.91 to 0.99.
    generator = random.Random(7)
    held = 0
    for _ in range(300):
        chances = [generator.choice((0.2, 0.6, 1.0)) for _ in range(60)]
        interval = mean_interval([[float(generator.random() < p) for _ in range(samples)] for p in chances])
        held += interval.low <= 0.6 <= interval.high
    assert 0.91 <= held / 300 <= 0.99
