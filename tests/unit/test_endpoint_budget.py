import pytest

from prism_cli.endpoint.budget import Budget, Price
from prism_cli.errors import BudgetError, RecipeError


def test_the_call_beyond_the_cap_is_refused_and_not_counted():
    budget = Budget(max_calls=2)
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


def test_calls_under_way_count_as_the_dearest_so_far():
    budget = Budget(max_usd=3.5, price=Price(prompt=1.0, completion=0.0))
    budget.reserve()
    budget.settle(1_000_000, 0)  # 1 dollar
    budget.reserve()
    budget.reserve()
    with pytest.raises(BudgetError):  # 1 spent + 2 under way + 1 = 4 > 3.5
        budget.reserve()
    budget.release()
    budget.reserve()


def test_dollars_cannot_be_capped_without_a_price():
    with pytest.raises(RecipeError, match="price"):
        Budget(max_usd=1.0)


def test_dollars_cannot_be_capped_when_tokens_are_not_reported():
    budget = Budget(max_usd=1.0, price=Price(1.0, 1.0))
    budget.reserve()
    with pytest.raises(BudgetError, match="does not report tokens"):
        budget.settle(None, None)


def test_a_request_without_a_reply_is_no_call():
    budget = Budget(max_calls=1)
    budget.reserve()
    budget.release()
    budget.reserve()
    budget.settle(10, 5)
    assert budget.summary()["calls"] == 1
    with pytest.raises(BudgetError):
        budget.reserve()


def test_what_an_answer_costs_is_unknown_without_its_tokens():
    assert Price(2.0, 10.0).usd(500_000, 100_000) == 2.0
    assert Price(2.0, 10.0).usd(500_000, None) is None
