import pytest

from prism_cli.responses import Grammar, Part
from prism_cli.rewards.format import format_reward
from prism_cli.rewards.shaping import overlong_penalty

GRAMMAR = Grammar({"perception": Part(("caption",), 0.5), "reasoning": Part(("think", "answer"), 0.5)})


def test_only_well_formed_responses_earn_the_format_reward():
    good = "<caption> a cat </caption> <think> it sits </think> <answer> B </answer>"
    assert format_reward(GRAMMAR.parse(good)) == 1.0
    assert format_reward(GRAMMAR.parse(good.replace("a cat", ""))) == 0.0
    assert format_reward(GRAMMAR.parse(good + " and more")) == 0.0


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (6000, 0.0), (7000, -0.5), (7500, -0.75), (8000, -1.0), (9999, -1.0)]
)
def test_the_overlong_penalty_grows_linearly_over_the_buffer(length, penalty):
    assert overlong_penalty(length, max_length=8000, buffer=2000) == penalty


def test_without_a_buffer_only_what_is_longer_is_punished():
    assert [overlong_penalty(length, 100, 0) for length in (99, 100, 101)] == [0.0, 0.0, -1.0]
