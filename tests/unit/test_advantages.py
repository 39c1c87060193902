import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prism_cli.rewards.advantages import align_advantages

HALF = torch.tensor([0.5, 0.5])
ONE = torch.tensor([1.0])


def column(*scores):
    return torch.tensor(scores, dtype=torch.float64)[:, None]


def flags(*valid):
    return torch.tensor(valid)


def test_two_scores_two_apart_are_normalised_by_root_two():
    # mean 1, std √2 with N − 1, so z = ∓1/√2.
    result = align_advantages(column(0.0, 2.0), flags(True, True), ONE, group_size=2)
    assert result.tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], abs=1e-6)


def test_each_part_is_normalised_before_it_is_weighted():
    # Part one says first, part two, ten times as loud, says second: equal weights cancel.
    scores = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    assert align_advantages(scores, flags(True, True), HALF, 2).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_combined_weights_the_raw_scores_and_so_hears_the_louder_part():
    # r = [0.5, 5]: mean 2.75, std 4.5/√2.
    scores = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    result = align_advantages(scores, flags(True, True), HALF, 2, rule="combined")
    assert result.tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], abs=1e-6)


def test_a_malformed_rollout_gets_the_least_score_minus_one_and_the_penalty():
    # [1, 3, malformed → 0]: mean 4/3, std √(7/3).
    result = align_advantages(column(1.0, 3.0, math.nan), flags(True, True, False), ONE, 3)
    std = math.sqrt(7 / 3)
    assert result.tolist() == pytest.approx([-1 / 3 / std, 5 / 3 / std, -4 / 3 / std - 1.5], abs=1e-5)


def test_combined_gives_a_malformed_rollout_the_least_weighted_score_minus_one():
    scores = torch.tensor([[2.0, 0.0], [2.0, 4.0], [math.nan, math.nan]])  # r = 1, 3, malformed → 0
    result = align_advantages(scores, flags(True, True, False), HALF, 3, rule="combined")
    std = math.sqrt(7 / 3)
    assert result.tolist() == pytest.approx([-1 / 3 / std, 5 / 3 / std, -4 / 3 / std - 1.5], abs=1e-5)


def test_apart_leaves_the_well_formed_their_ranking():
    scores, valid = column(0.50, 0.51, math.nan), flags(True, True, False)
    floor = align_advantages(scores, valid, ONE, 3)
    apart = align_advantages(scores, valid, ONE, 3, malformed="apart")
    assert float(floor[1] - floor[0]) < 0.02
    root = 1 / math.sqrt(2)
    assert apart.tolist() == pytest.approx([-root, root, -root - 1.5], abs=1e-3)


@pytest.mark.parametrize("malformed", ["floor", "apart"])
def test_a_group_without_a_well_formed_rollout_gets_the_penalty_alone(malformed):
    result = align_advantages(column(math.nan, math.nan), flags(False, False), ONE, 2, malformed=malformed)
    assert result.tolist() == [-1.5, -1.5]


def test_apart_says_nothing_of_a_lone_well_formed_rollout():
    result = align_advantages(column(7.0, math.nan), flags(True, False), ONE, 2, malformed="apart")
    assert result.tolist() == [0, -1.5]


def test_a_group_of_one_is_its_score():
    result = align_advantages(column(0.7, math.nan), flags(True, False), ONE, 1)
    assert result.tolist() == pytest.approx([0.7, -1 - 1.5])


def test_a_floor_under_the_spread_shrinks_what_the_judge_cannot_tell():
    result = align_advantages(column(0.0, 0.02), flags(True, True), ONE, 2, std_floor=0.25)
    assert result.tolist() == pytest.approx([-0.04, 0.04], abs=1e-6)


def test_equal_scores_are_worth_nothing_even_in_float32():
    scores = torch.full((16, 1), 9.7)
    assert align_advantages(scores, torch.ones(16, dtype=torch.bool), ONE, 16).abs().max() < 1e-6


def test_groups_do_not_see_each_other():
    scores, valid = column(0.0, 2.0, 100.0, 104.0), torch.ones(4, dtype=torch.bool)
    result = align_advantages(scores, valid, ONE, 2)
    assert result[:2].tolist() == pytest.approx(result[2:].tolist(), abs=1e-6)


def test_an_incomplete_group_is_refused():
    with pytest.raises(ValueError, match="3 rollouts"):
        align_advantages(column(0.0, 1.0, 2.0), flags(True, True, True), ONE, 2)


groups = st.lists(
    st.tuples(st.floats(-10, 10), st.floats(-10, 10), st.booleans()), min_size=2, max_size=8
)  # a group: two parts' scores and well-formedness
options = st.fixed_dictionaries(
    {"rule": st.sampled_from(["per_part", "combined"]), "malformed": st.sampled_from(["floor", "apart"])}
)


def tensors(group):
    scores = torch.tensor([row[:2] for row in group], dtype=torch.float64)
    valid = flags(*(row[2] for row in group))
    scores[~valid] = math.nan
    return scores, valid


@given(groups, options, st.floats(-5, 5))
def test_shifting_a_groups_scores_changes_nothing(group, how, shift):
    scores, valid = tensors(group)
    if not valid.any():  # the floor of a group without a valid score is −1 whatever the shift
        return
    before = align_advantages(scores, valid, HALF, len(group), std_floor=0.01, **how)
    after = align_advantages(scores + shift, valid, HALF, len(group), std_floor=0.01, **how)
    assert torch.allclose(before, after, atol=1e-6)


@given(groups, options, st.randoms())
def test_the_order_within_a_group_does_not_matter(group, how, random):
    order = random.sample(range(len(group)), len(group))
    scores, valid = tensors(group)
    shuffled = align_advantages(scores[order], valid[order], HALF, len(group), std_floor=0.01, **how)
    assert torch.allclose(align_advantages(scores, valid, HALF, len(group), std_floor=0.01, **how)[order], shuffled)


@given(groups, options)
def test_a_malformed_rollout_is_always_worth_less_than_any_other(group, how):
    scores, valid = tensors(group)
    result = align_advantages(scores, valid, HALF, len(group), **how)
    assert result.isfinite().all()
    if valid.any() and not valid.all():
        assert result[~valid].max() < result[valid].min()
