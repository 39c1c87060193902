import pytest

from prism_cli.responses import Grammar, Part
from prism_cli.rewards.format import format_reward
from prism_cli.rewards.shaping import combined_reward, overlong_penalty

GRAMMAR = Grammar({"perception": Part(("caption",), 0.5), "reasoning": Part(("think", "answer"), 0.5)})


def test_only_well_formed_responses_earn_the_format_reward():
    good = "<caption> a cat </caption> <think> it sits </think> <answer> B </answer>"
    assert format_reward(GRAMMAR.parse(good)) == 1.0
    assert format_reward(GRAMMAR.parse(good.replace("a cat", ""))) == 0.0
    assert format_reward(GRAMMAR.parse(good + " and more")) == 0.0


def test_accuracy_counts_four_times_the_format():
    assert combined_reward(1.0, 1.0, well_formed=True) == 1.0
    assert combined_reward(0.0, 1.0, well_formed=True) == 0.2
    assert combined_reward(0.5, 1.0, well_formed=True) == pytest.approx(0.6)
    assert combined_reward(1.0, 0.5, well_formed=True, accuracy_weight=0.6, format_weight=0.4) == pytest.approx(0.8)


def test_a_malformed_response_earns_nothing_even_when_it_is_right():
    assert combined_reward(1.0, 0.0, well_formed=False) == 0.0


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (6000, 0.0), (7000, -0.5), (7500, -0.75), (8000, -1.0), (9999, -1.0)]
)
def test_the_overlong_penalty_grows_linearly_over_the_buffer(length, penalty):
    assert overlong_penalty(length, max_length=8000, buffer=2000) == penalty


def test_without_a_buffer_only_what_is_longer_is_punished():
    assert [overlong_penalty(length, 100, 0) for length in (99, 100, 101)] == [0.0, 0.0, -1.0]
