import pytest

from prism_cli.endpoint.budget import Budget, Caps, Price
from prism_cli.errors import BudgetError, RecipeError


def test_the_call_beyond_the_cap_is_refused_and_not_counted():
    budget = Budget(Caps(max_calls=2))
    for _ in range(2):
        budget.reserve()
        budget.settle(10, 5)
    with pytest.raises(BudgetError, match="2 calls") as refused:
        budget.reserve()
    assert refused.value.exit_code == 3
    assert budget.summary() == {"calls": 2, "cached": 0, "prompt_tokens": 20, "completion_tokens": 10, "usd": None}


def test_dollars_are_prompt_and_completion_tokens_times_their_price():
    budget = Budget(price=Price(prompt=2.0, completion=10.0))
    budget.reserve()
    budget.settle(500_000, 100_000)
    budget.reuse()
    # 0.5 · 2 + 0.1 · 10
    assert budget.summary()["usd"] == 2.0
    assert budget.summary()["cached"] == 1


def test_what_a_call_can_cost_is_set_aside_until_it_has_ended():
    budget = Budget(Caps(max_usd=3.5), price=Price(prompt=1.0, completion=1.0))
    first, second = [budget.reserve(500_000, 500_000) for _ in range(2)]  # $1 each
    assert (first, second) == (1.0, 1.0)
    assert budget.reserve(1_000_000, 1_000_000) is None, "2 under way + 2 = 4 > 3.5, unless they cost less"
    assert budget.settle(100_000, 100_000, first) == pytest.approx(0.2)
    assert budget.reserve(1_000_000, 1_000_000) == 2.0, "0.2 spent + 1 under way + 2"
    budget.release(2.0)
    budget.settle(500_000, 500_000, second)
    with pytest.raises(BudgetError, match=r"\$1\.2000 of the budget of \$3\.5 are spent.*could cost \$2\.4") as refused:
        budget.reserve(1_200_000, 1_200_000)  # 1.2 + 2.4 > 3.5, whatever comes
    # The quantity, by its place in the recipe once it is known, and with the option that sets it.
    assert (refused.value.hint or "").startswith("raise max_usd and run the same command again")
    refused.value.in_section("teacher")
    assert str(refused.value).startswith("teacher: $1.2000 of the budget")
    shown = refused.value.advice({"teacher.max_usd": "--max-teacher-usd"}) or ""
    assert shown.startswith("raise teacher.max_usd (--max-teacher-usd) and run")
    assert "a smaller teacher.max_tokens makes" in shown


def test_calls_under_way_count_until_they_turn_out_to_be_none():
    budget = Budget(Caps(max_calls=1))
    assert budget.reserve() == 0.0
    assert budget.reserve() is None
    budget.release()
    assert budget.reserve() == 0.0


def test_a_call_dearer_than_was_thought_possible_is_expected_again():
    budget = Budget(Caps(max_usd=5.0), price=Price(1.0, 0.0))
    budget.settle(3_000_000, 0, budget.reserve(1_000_000) or 0.0)
    with pytest.raises(BudgetError, match=r"could cost \$3\.0000"):
        budget.reserve(1_000_000)


def test_dollars_cannot_be_capped_without_a_price():
    with pytest.raises(RecipeError, match="price"):
        Budget(Caps(max_usd=1.0))


def test_a_call_whose_tokens_are_not_counted_costs_the_most_it_can():
    budget = Budget(Caps(max_usd=5.0), price=Price(1.0, 1.0))
    assert budget.settle(7, None, budget.reserve(1_000_000, 1_000_000) or 0.0) == 2.0
    assert budget.summary()["usd"] == 2.0


def test_a_request_without_a_reply_is_no_call():
    budget = Budget(Caps(max_calls=1))
    budget.reserve()
    budget.release()
    budget.reserve()
    budget.settle(10, 5)
    assert budget.summary()["calls"] == 1
    with pytest.raises(BudgetError, match="1 calls") as refused:
        budget.reserve()
    assert (refused.value.hint or "").startswith("raise max_calls and run")


def test_what_an_answer_costs_is_unknown_without_its_tokens():
    assert Price(2.0, 10.0).usd(500_000, 100_000) == 2.0
    assert Price(2.0, 10.0).usd(500_000, None) is None
