"""Drift from texts alone: what the classifier may see, what it must not, and how sure it is."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_cli.evaluation.auc import clustered_auc
from prism_cli.evaluation.drift import drift, drift_auc, item_count, separate, step_count, word_count

WORDS = [f"word{i}" for i in range(40)]


def pairs(prompts=60, samples=3, seed=0, teacher_words=(10, 14), policy_words=(10, 14), slip=0.0):
    """Teacher and policy texts that share each prompt's topic; the policy says `well` in a share of its texts."""
    draw = random.Random(seed)
    teacher, policy, groups = [], [], []
    for prompt in range(prompts):
        topic = " ".join(f"topic{draw.randrange(30)}" for _ in range(3))
        answer = f"{topic} " + " ".join(draw.choices(WORDS, k=draw.randint(*teacher_words)))
        for _ in range(samples):
            text = f"{topic} " + " ".join(draw.choices(WORDS, k=draw.randint(*policy_words)))
            teacher.append(answer)
            policy.append(text + " well" * (draw.random() < slip))
            groups.append(prompt)
    return teacher, policy, groups


def covers(interval, value):
    return interval.low <= value <= interval.high


# AUC ------------------------------------------------------------------------------------------------------------------


def two_folds(teacher, policy, lengths=None):
    """Ten prompts, those of even number in one fold."""
    numbers = np.arange(10)
    return clustered_auc(np.array(teacher, float), np.array(policy, float), numbers, numbers % 2, 0, lengths)


def test_the_auc_counts_wins_within_folds():
    # In a fold of five, the i-th teacher score beats the policy scores 0 … i: 15 of 25.
    auc = two_folds(range(10), [i - 0.5 for i in range(10)])
    assert auc.value == pytest.approx(0.6)
    assert auc.n == 10
    assert auc.low < 0.6 < auc.high


def test_equal_scores_are_ties_and_leave_no_doubt():
    assert two_folds([1] * 10, [1] * 10)[:3] == (0.5, 0.5, 0.5)


def test_no_spread_is_no_certainty():
    auc = two_folds([1] * 10, [0] * 10)
    assert (auc.value, auc.high) == (1, 1)
    assert auc.low == pytest.approx(0.7225, abs=1e-4)  # Wilson, 10 of 10


def test_only_texts_of_equal_length_are_compared_when_matched():
    # Texts of prompts 0 to 4 are as long as the policy's, and lose; the others would win, but are longer.
    long = np.array([10.0] * 5 + [20.0] * 5)
    teacher, policy = [0] * 5 + [5] * 5, [1] * 10
    assert two_folds(teacher, policy).value == pytest.approx(0.5)
    assert two_folds(teacher, policy, [long, np.full(10, 10.0)]).value == 0
    assert two_folds(teacher, policy, [long, np.full(10, 40.0)]) is None


def test_a_word_more_in_twenty_still_counts_as_equally_long():
    lengths = [np.full(10, 20.0), np.full(10, 21.0)]
    assert two_folds([1] * 10, [0] * 10, lengths).value == 1
    assert two_folds([1] * 10, [0] * 10, [np.full(10, 20.0), np.full(10, 22.0)]) is None


# Two-sample test ------------------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(10, 40))
def test_texts_of_one_source_can_not_be_told_apart(seed, prompts):
    found = drift(*pairs(prompts, seed=seed), seed=seed)
    for interval in filter(None, (found.auc, found.matched)):
        # One in twenty intervals may miss; none may miss by its own width.
        assert abs(interval.value - 0.5) < interval.high - interval.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = [covers(drift_auc(*pairs(prompts=30, seed=seed), seed=seed), 0.5) for seed in range(20)]
    assert sum(covered) >= 17


def test_a_planted_difference_is_found_in_its_part_and_no_other():
    teacher, policy, groups = pairs(slip=0.6)
    other = pairs(seed=1)
    assert drift(teacher, policy, groups).auc.low > 0.55
    assert covers(drift(*other).auc, 0.5)
    assert covers(drift(teacher, policy, groups).words.difference, 0.6)


def test_a_teachers_text_repeated_for_each_rollout_is_no_tell():
    # Twelve times in the data it must not look common, nor be seen on both sides of a fold.
    values = [drift_auc(*pairs(prompts=20, samples=12, seed=seed)).value for seed in range(8)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_length_alone_shows_in_the_auc_and_not_when_matched():
    found = drift(*pairs(prompts=100, policy_words=(12, 20), teacher_words=(10, 16)))
    assert found.auc.low > 0.6
    assert covers(found.matched, 0.5)


def test_a_difference_in_words_shows_at_equal_length_too():
    teacher, policy, groups = pairs()
    policy = [text.replace("word1", "other") for text in policy]
    found = drift(teacher, policy, groups)
    assert found.matched.low > 0.6
    assert found.words.difference.value == pytest.approx(0, abs=0.6)


def test_lengths_that_never_meet_can_not_be_matched():
    found = drift(*pairs(prompts=20, policy_words=(40, 50)))
    assert found.matched is None
    assert found.auc.value > 0.95


def test_equal_texts_are_at_one_half_exactly():
    teacher, _, groups = pairs(prompts=12)
    assert drift(teacher, teacher, groups).auc[:3] == (0.5, 0.5, 0.5)


def test_a_prompts_texts_are_never_on_both_sides_of_a_fold():
    teacher, policy, groups = pairs(prompts=20)
    fold = separate(teacher, policy, groups).fold
    assert {len(set(fold[np.array(groups) == prompt])) for prompt in groups} == {1}
    assert set(fold) == {0, 1, 2, 3, 4}


def test_the_same_seed_gives_the_same_drift():
    assert drift(*pairs(slip=0.3), seed=3) == drift(*pairs(slip=0.3), seed=3)


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="9 prompts"):
        drift(*pairs(prompts=9))


# Counts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words", "steps", "items"),
    [
        ("<caption>a1 red square , b2 blue circle</caption>", 7, 1, 2),
        ("<think>b2 holds square 4 , 4 plus 4 is 8</think><answer>8</answer>", 11, 2, 3),
        ("1. Find x.\n2. x is 3.5, so 2x is 7.\n- Done!", 21, 3, 4),
        ("First this. Then that? Yes", 7, 3, 3),
        ("", 0, 0, 0),
    ],
)
def test_words_steps_and_items_are_counted(text, words, steps, items):
    assert (word_count(text), step_count(text), item_count(text)) == (words, steps, items)


def test_counts_are_compared_prompt_by_prompt():
    teacher = ["a. b."] * 10 + ["a."] * 10
    policy = ["a. b. c."] * 10 + ["a. b."] * 10
    found = drift(teacher, policy, list(range(20))).steps
    assert (found.teacher, found.policy) == (1.5, 2.5)
    assert found.difference[:3] == (1, 1, 1)
