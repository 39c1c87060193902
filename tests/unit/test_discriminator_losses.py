import math

import pytest
import torch

from prism_cli.discriminator.losses import bradley_terry, discriminator_loss, pair_statistics

ONE_UP = math.log(1 + math.exp(-1))  # ≈ 0.3133


def scores(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def loss_of(teacher, student, valid, prompt_of, **options):
    return discriminator_loss(teacher, student, torch.tensor(valid), torch.tensor(prompt_of), **options)


def statistics_of(teacher, student, valid, prompt_of, equal=None, **options):
    equal = torch.zeros(student.shape, dtype=torch.bool) if equal is None else torch.tensor(equal)
    arguments = (torch.tensor(valid), torch.tensor(prompt_of), equal, torch.zeros(teacher.shape[1]))
    return pair_statistics(teacher, student, *arguments, **options)


def test_a_teacher_one_point_ahead_costs_log_of_one_plus_e_to_minus_one():
    assert float(bradley_terry(torch.tensor([1.0]), torch.tensor([0.0]))) == pytest.approx(0.3133, abs=1e-4)


def test_parts_are_summed_and_pairs_averaged():
    teacher, student = scores([1, 0]), scores([0, 0], [0, 0])
    result = loss_of(teacher, student, [True, True], [0, 0], score_penalty=0.0)
    assert float(result.loss) == pytest.approx(ONE_UP + math.log(2))
    assert result.parts.tolist() == pytest.approx([2 * ONE_UP, 2 * math.log(2)])


def test_each_rollout_meets_its_own_prompts_teacher():
    result = loss_of(scores([5], [1]), scores([0], [5]), [True, True], [1, 0], score_penalty=0.0)
    assert float(result.loss) == pytest.approx((ONE_UP + math.log(2)) / 2)


def test_malformed_rollouts_are_never_read():
    student = scores([0], [math.nan]).requires_grad_()
    result = loss_of(scores([1]), student, [True, False], [0, 0], score_penalty=0.0)
    result.loss.backward()
    assert float(result.loss.detach()) == pytest.approx(ONE_UP)
    assert student.grad[0].item() > 0
    assert student.grad[1].item() == 0


def test_the_penalty_is_the_mean_square_of_the_scores():
    # (3² + 1²) / 2 = 5
    result = loss_of(scores([3]), scores([1]), [True], [0], score_penalty=0.001)
    assert float(result.loss) == pytest.approx(math.log(1 + math.exp(-2)) + 0.005)


def test_the_penalty_does_not_grow_with_the_number_of_parts():
    # Mean of 2², 2², 0², 0² is 2; two parts each cost log(1 + e^-2).
    result = loss_of(scores([2, 2]), scores([0, 0]), [True], [0], score_penalty=0.5)
    assert float(result.loss) == pytest.approx(2 * math.log(1 + math.exp(-2)) + 1)


def test_clipped_scores_compare_as_equal_and_are_pulled_back_by_the_penalty():
    teacher = scores([30]).requires_grad_()
    result = loss_of(teacher, scores([12]), [True], [0], score_clip=10.0, score_penalty=0.001)
    result.loss.backward()
    assert result.parts.item() == pytest.approx(math.log(2))
    assert teacher.grad.item() == pytest.approx(0.03)


def test_no_clip_lets_the_difference_through():
    assert float(loss_of(scores([13]), scores([12]), [True], [0], score_clip=None, score_penalty=0.0).loss) == (
        pytest.approx(ONE_UP)
    )


def test_any_split_of_a_step_adds_up_to_the_same_loss():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 2), torch.randn(5, 2)
    prompt_of, valid = [0, 0, 0, 1, 1], [True, False, True, True, True]
    whole = loss_of(teacher, student, valid, prompt_of).loss
    split = [
        loss_of(teacher, student[a:b], valid[a:b], prompt_of[a:b], valid_count=4).loss
        for a, b in [(0, 1), (1, 4), (4, 5)]
    ]
    assert float(sum(split)) == pytest.approx(float(whole), rel=1e-6)


def test_two_processes_averaged_give_the_loss_over_both():
    torch.manual_seed(0)
    teacher, student = torch.randn(1, 1), torch.randn(4, 1)
    whole = loss_of(teacher, student, [True] * 4, [0] * 4).loss
    uneven = [loss_of(teacher, student[a:b], [True] * (b - a), [0] * (b - a), valid_count=4, world_size=2).loss
              for a, b in [(0, 1), (1, 4)]]  # fmt: skip
    assert float(sum(uneven)) / 2 == pytest.approx(float(whole), rel=1e-6)


def test_metrics_are_means_over_pairs():
    statistics = statistics_of(scores([1], [4]), scores([0], [2], [3], [9]), [True, True, True, False], [0, 0, 1, 1])
    metrics = statistics.metrics(["perception"])
    assert metrics["discriminator/accuracy/perception"] == pytest.approx(2 / 3)
    assert metrics["discriminator/teacher_score/perception"] == pytest.approx(2)  # (1 + 1 + 4) / 3
    assert metrics["discriminator/policy_score/perception"] == pytest.approx(5 / 3)
    assert metrics["discriminator/margin/perception"] == pytest.approx(1 / 3)


def test_pairs_of_equal_text_are_counted_and_left_out_of_accuracy():
    statistics = statistics_of(scores([1]), scores([1], [0]), [True, True], [0, 0], equal=[[True], [False]])
    metrics = statistics.metrics(["reasoning"])
    assert metrics["discriminator/accuracy/reasoning"] == 1
    assert metrics["discriminator/equal_pairs/reasoning"] == 1


def test_accuracy_is_absent_when_every_pair_is_equal():
    metrics = statistics_of(scores([1]), scores([1]), [True], [0], equal=[[True]]).metrics(["reasoning"])
    assert "discriminator/accuracy/reasoning" not in metrics
    assert metrics["discriminator/margin/reasoning"] == 0


def test_a_tie_between_different_texts_is_no_win():
    assert statistics_of(scores([1]), scores([1]), [True], [0]).metrics(["p"])["discriminator/accuracy/p"] == 0


def test_saturated_counts_scores_at_the_clip():
    metrics = statistics_of(scores([10]), scores([-12], [3]), [True, True], [0, 0], score_clip=10.0).metrics(["p"])
    assert metrics["discriminator/saturated_fraction/p"] == pytest.approx(3 / 4)


def test_nothing_measured_is_nothing_reported():
    assert statistics_of(scores([1]), scores([math.nan]), [False], [0]).metrics(["p"]) == {}
