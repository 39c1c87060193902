"""The pace of a client: when it grows, when it yields, how long it waits."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import openai
import pytest
from tests.faulty_endpoint import FaultyEndpoint, ask, connecting, results, status

from prism_cli.endpoint import pace as pace_module
from prism_cli.endpoint.failures import passing
from prism_cli.endpoint.pace import Pace
from prism_cli.endpoint.store import AnswerStore


async def held(pace: Pace) -> float:
    """Seconds the next request has to wait; one that waits a minute fails the test."""
    asked = time.monotonic()
    async with asyncio.timeout(60), pace.turn() as started:
        return started - asked


async def answered(pace: Pace, count: int, seconds: float) -> None:
    """Lets `count` requests succeed that took `seconds`, with all turns taken."""
    turns = [pace.turn() for _ in range(pace.limit)]
    for turn in turns:
        await turn.__aenter__()
    for _ in range(count):
        pace.succeeded(time.monotonic() - seconds)
    for turn in turns:
        await turn.__aexit__(None, None, None)


def test_it_starts_at_four_and_grows_by_four_while_latency_holds():
    async def limits():
        pace = Pace(64, "x")
        seen = [pace.limit]
        for _ in range(4):
            await answered(pace, max(8, pace.limit), seconds=1.0)
            seen.append(pace.limit)
        return seen

    assert asyncio.run(limits()) == [4, 8, 12, 16, 20]


def test_it_grows_no_more_once_answers_take_twice_as_long():
    async def limits():
        pace = Pace(64, "x")
        await answered(pace, 8, seconds=1.0)
        await answered(pace, 8, seconds=2.2)
        slow = pace.limit
        await answered(pace, 8, seconds=1.8)
        return slow, pace.limit

    assert asyncio.run(limits()) == (8, 12)


def test_it_does_not_grow_while_its_turns_are_not_used():
    async def limit():
        pace = Pace(64, "x")
        for _ in range(100):
            pace.succeeded(time.monotonic() - 1)
        return pace.limit

    assert asyncio.run(limit()) == 4


def test_all_refusals_of_one_moment_halve_it_once_and_it_grows_by_one_from_there():
    async def limits():
        pace = Pace(64, "x")
        await answered(pace, 8, seconds=1.0)
        started = time.monotonic()
        for _ in range(8):
            pace.failed(started, overloaded=True)
        halved = pace.limit
        await answered(pace, 8, seconds=1.0)
        grown = pace.limit
        pace.failed(time.monotonic(), overloaded=True)
        return halved, grown, pace.limit

    assert asyncio.run(limits()) == (4, 5, 2)


def test_it_never_falls_below_one():
    async def limit():
        pace = Pace(1, "x")
        for _ in range(5):
            pace.failed(time.monotonic(), overloaded=True)
        return pace.limit

    assert asyncio.run(limit()) == 1


def test_a_pause_the_endpoint_asks_for_holds_everyone():
    async def waited():
        pace = Pace(4, "x")
        pace.failed(time.monotonic(), overloaded=True, retry_after=0.3)
        return await held(pace)

    assert asyncio.run(waited()) > 0.25


@pytest.mark.parametrize("asked", [86_400.0, float("inf")])
def test_an_absurd_pause_is_cut_to_ten_minutes_and_said(asked, caplog, monkeypatch):
    monkeypatch.setattr(pace_module, "LONGEST_PAUSE", 0.2)

    async def waited():
        pace = Pace(4, "http://x/v1")
        pace.failed(time.monotonic(), overloaded=True, retry_after=asked)
        return await held(pace)

    assert asyncio.run(waited()) > 0.15
    assert f"http://x/v1 asks for a pause of {asked:g} s (more than 0.2 s is not waited)" in caplog.text


def test_stopping_ends_pauses():
    async def waited():
        pace = Pace(4, "x")
        pace.failed(time.monotonic(), overloaded=True, retry_after=600)
        waiting = asyncio.create_task(held(pace))
        await asyncio.sleep(0.05)
        pace.stop()
        await waiting

    asyncio.run(waited())


def test_one_success_ends_a_row_of_failures(monkeypatch):
    monkeypatch.setattr(pace_module, "PATIENCE", 0.0)

    async def verdicts():
        pace, seen = Pace(4, "x"), []
        for outcome in [pace.failed] * 7 + [pace.succeeded] + [pace.failed] * 8:
            outcome(time.monotonic())
            seen.append(pace.hopeless is not None)
        return seen

    # Eight in a row, not eight in all.
    assert asyncio.run(verdicts()) == [False] * 15 + [True]


def test_failures_of_one_moment_are_not_reason_enough_to_give_up():
    async def hopeless():
        pace = Pace(64, "x")
        for _ in range(100):
            pace.failed(time.monotonic())
        return pace.hopeless

    assert asyncio.run(hopeless()) is None


def test_a_rate_limit_is_waited_for_much_longer_than_a_failure_and_said_once(monkeypatch, caplog):
    async def verdicts(overloaded: bool) -> list[bool]:
        pace, seen, now = Pace(4, "http://x/v1"), [], time.monotonic()
        for minutes in range(12):
            monkeypatch.setattr(time, "monotonic", lambda minutes=minutes: now + 30.1 * minutes)
            pace.failed(time.monotonic(), overloaded=overloaded)
            seen.append(pace.hopeless is not None)
        return seen

    # Eight failures are enough after half a minute; where they are a rate limit, after five minutes.
    assert asyncio.run(verdicts(overloaded=False)) == [False] * 7 + [True] * 5
    assert asyncio.run(verdicts(overloaded=True)) == [False] * 10 + [True] * 2
    assert caplog.text.count("http://x/v1 limits how many requests it takes") == 1


def test_a_failure_between_rate_limits_does_not_shorten_the_patience(monkeypatch):
    monkeypatch.setattr(pace_module, "PATIENCE", 0.0)

    async def hopeless():
        pace = Pace(4, "x")
        for overloaded in [True] * 9 + [False]:
            pace.failed(time.monotonic(), overloaded=overloaded)
        return pace.hopeless

    assert asyncio.run(hopeless()) is None


# Retry-After ---------------------------------------------------------------------------------------------------------


def asked_to_wait(**headers: str) -> float | None:
    response = httpx2.Response(429, headers=headers, request=httpx2.Request("POST", "http://x"))
    how = passing(openai.RateLimitError("slow", response=response, body=None), attempts=3)
    assert how is not None
    assert how.overloaded
    return how.retry_after


def test_retry_after_is_read_as_seconds():
    assert asked_to_wait(**{"Retry-After": "7"}) == 7
    assert asked_to_wait(**{"Retry-After": "0.5"}) == 0.5


def test_retry_after_is_read_as_a_date_by_the_servers_own_clock():
    now = datetime(2020, 1, 1, tzinfo=UTC)  # far from this machine's clock
    headers = {"Retry-After": format_datetime(now + timedelta(seconds=90), True), "Date": format_datetime(now, True)}
    assert asked_to_wait(**headers) == 90


def test_retry_after_is_read_as_a_date_without_the_servers_clock():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), True)
    waited = asked_to_wait(**{"Retry-After": date})
    assert waited is not None
    assert 80 < waited <= 90


def test_a_retry_after_beyond_all_calendars_is_a_long_time():
    waited = asked_to_wait(**{"Retry-After": "Wed, 01 Jan 99999999999 00:00:00 GMT"})
    assert waited is not None
    assert waited > 1e9


@pytest.mark.parametrize("value", ["soon", "", "nan", "Wed, 99 Foo 2026"])
def test_a_retry_after_that_is_no_time_is_none(value):
    assert asked_to_wait(**{"Retry-After": value}) is None


@pytest.mark.parametrize("value", ["-5", "Wed, 01 Jan 2020 00:00:00 GMT"])
def test_a_retry_after_in_the_past_is_now(value):
    assert asked_to_wait(**{"Retry-After": value}) == 0


def test_a_clock_that_jumps_changes_no_pause(tmp_path, monkeypatch):
    with FaultyEndpoint() as endpoint, connecting(endpoint.url, AnswerStore(tmp_path / "a.sqlite")) as connect:
        client = connect()
        results(client, ask("first"))
        endpoint.plan["q"] = [status(429, retry_after="1"), status(500)]
        real, jumps = time.time, iter([-1e8, 1e8] * 10_000)
        monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
        start = time.monotonic()
        results(client, ask("q"))
        assert time.monotonic() - start >= 1
        kept = AnswerStore(tmp_path / "a.sqlite").answers(client.key(ask("q")))
        assert kept[0].seconds is not None
        assert 0 <= kept[0].seconds < 1000, "the clock jumps by three years"
