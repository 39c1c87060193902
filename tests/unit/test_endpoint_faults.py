"""Everything that goes wrong between a client and an endpoint, over real sockets."""

import asyncio
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.responses import StreamingResponse
from tests.faulty_endpoint import (
    PASSING,
    FaultyEndpoint,
    answer,
    ask,
    broken_off,
    connecting,
    outcomes,
    results,
    sow,
    status,
)

from prism_cli.endpoint import failures, pace
from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.errors import TeacherError

pytestmark = pytest.mark.usefixtures("no_key")


# What passes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*PASSING, "408", "409"])
def test_a_passing_failure_is_asked_again(endpoint, connect, store, kind):
    endpoint.plan["q"] = [PASSING[kind] if kind in PASSING else status(int(kind))]
    client = connect(timeout=1.0)
    assert results(client, ask("q"))[0].text == "answer to q"
    assert endpoint.asked == {"q": 2}
    # What was not waited for may be billed: it is a call too.
    assert store.count() == client.budget.summary()["calls"] == (2 if kind in ("hung", "slow drip") else 1)


def test_retry_after_is_honoured_by_the_whole_client(endpoint, connect):
    endpoint.plan["q"] = [status(429, retry_after="2")]
    client = connect()
    start = time.monotonic()
    futures = client.submit([ask("q")])
    while not endpoint.asked:
        time.sleep(0.01)
    time.sleep(0.3)
    results(client, ask("another"))
    assert time.monotonic() - start >= 2, "without the header nobody waits longer than half a second"
    assert futures[0].result(timeout=30).text == "answer to q"


def test_a_connection_reset_midway_is_tried_again(connect, store):
    """A real reset (RST), which the faulty endpoint's framework can't send."""
    body = b'{"choices": [{"finish_reason": "stop", "message": {"content": "yes"}}]}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    seen = Counter()

    def serve(listener):
        for sent in (head + body[:20], head + body):
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(sent)
            seen["connections"] += 1
            if len(sent) < len(head + body):
                time.sleep(0.2)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        client = connect(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        assert results(client, ask("q"))[0].text == "yes"
    assert (seen["connections"], store.count()) == (2, 1)


def test_an_endpoint_that_comes_up_late_is_waited_for(connect):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(1) as threads:
        given = threads.submit(results, connect(f"http://127.0.0.1:{port}/v1"), *[ask(f"q{i}") for i in range(30)])
        time.sleep(1.5)
        with FaultyEndpoint(port=port) as late:
            assert len(given.result(timeout=60)) == 30
            assert set(late.asked.values()) == {1}


def test_a_question_whose_answer_was_lost_is_kept_once(endpoint, connect, store):
    # The endpoint did answer the first time, as far as it knows.
    endpoint.plan["q"] = [broken_off, answer("second answer")]
    assert results(connect(), ask("q"))[0].text == "second answer"
    assert [kept.text for kept in store] == ["second answer"]


def test_one_completion_sent_for_two_questions_is_kept_for_both(endpoint, connect, store):
    endpoint.plan["a"], endpoint.plan["b"] = [answer("the same")], [answer("the same")]
    assert [given.text for given in results(connect(), ask("a"), ask("b"))] == ["the same"] * 2
    assert (store.count(), len({kept.key for kept in store})) == (2, 2)


# What stays with one question ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["500", "hung", "no choices", "reset mid-body", "429"])
def test_a_question_that_keeps_failing_fails_alone(endpoint, connect, monkeypatch, kind):
    monkeypatch.setattr(failures, "_TRIES", 2)
    monkeypatch.setattr(failures, "_TRIES_WHEN_LIMITED", 2)
    endpoint.plan["q"] = [PASSING[kind]] * 9
    failed, other = outcomes(connect(timeout=2.0, attempts=2), [ask("q", row="7"), ask("r")])
    assert isinstance(failed, NoAnswerError)
    assert (failed.reason, str(failed).startswith("row 7: ")) == ("unanswered", True)
    assert other.text == "answer to r"
    assert endpoint.asked["q"] == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(400, "too long"), "rejected"),
        (status(422), "rejected"),
        (status(400, "no", "content_filter"), "filtered"),
    ],
)
def test_a_rejected_request_is_not_sent_again_and_fails_alone(endpoint, connect, store, fault, reason):
    endpoint.plan["q"] = [fault]
    failed, other = outcomes(connect(), [ask("q", row="7"), ask("r")])
    assert isinstance(failed, NoAnswerError)
    assert (failed.reason, "row 7: " in str(failed)) == (reason, True)
    assert other.text == "answer to r"
    assert (endpoint.asked["q"], store.count()) == (1, 1)


def test_an_answer_of_ten_megabytes_can_not_be_used(endpoint, connect, store):
    endpoint.plan["q"] = [answer("x" * 10_000_000)] * 2
    (failed,) = outcomes(connect(attempts=2, max_tokens=100), [ask("q")])
    assert (failed.reason, "longer than max_tokens=100 allow" in str(failed)) == ("too long", True)
    # 32 characters a token are allowed; one more is kept, enough to judge.
    assert [len(kept.text) for kept in store] == [3201, 3201]
    assert [kept.completion_tokens for kept in store] == [5, 5], "kept for the bill"


def test_a_reply_without_end_is_not_read_to_its_end(endpoint, connect, store):
    sent = Counter()

    async def endless():
        for _ in range(500):
            sent["megabytes"] += 1
            yield b" " * 2**20
            await asyncio.sleep(0.005)  # so that the server learns of a client that left

    endpoint.plan["q"] = [lambda question: StreamingResponse(endless(), media_type="application/json")]
    (failed,) = outcomes(connect(attempts=1), [ask("q")])
    assert failed.reason == "too long"
    assert 32 < sent["megabytes"] < 64
    assert [kept.finish for kept in store] == ["oversized"]


# What ends the client ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(401), "refused to answer without a key"),
        (status(403), "refused to answer without a key"),
        (status(404), "does not know m"),
        (status(402, "Insufficient Balance"), "no money left"),
        (status(429, "You exceeded your current quota", "insufficient_quota"), "no money left"),
    ],
)
def test_what_another_try_can_not_cure_ends_the_client_at_once(endpoint, connect, fault, said):
    endpoint.plan["q"] = [fault] * 9
    client = connect()
    with pytest.raises(TeacherError, match=said) as caught:
        results(client, ask("q"))
    assert not isinstance(caught.value, NoAnswerError)
    assert endpoint.asked == {"q": 1}


def test_a_key_that_expires_midway_loses_nothing_that_was_paid_for(endpoint, connect, store):
    questions = [ask(f"q{i}") for i in range(40)]
    client = connect()
    results(client, *questions[:20])
    for i in range(20, 40):
        endpoint.plan[f"q{i}"] = [status(401)]
    errors = outcomes(client, questions)[20:]
    assert len(set(map(id, errors))) == 1
    assert "401" in str(errors[0])
    assert store.count() == endpoint.completed.total() == 20
    endpoint.plan.clear()
    results(connect(), *questions)
    assert {endpoint.completed[f"q{i}"] for i in range(40)} == {1}


@pytest.mark.parametrize("kind", ["500", "429", "hung", "web page"])
def test_an_endpoint_that_only_fails_ends_the_client_with_one_message(endpoint, connect, monkeypatch, kind):
    monkeypatch.setattr(pace, "PATIENCE", 1.0)
    monkeypatch.setattr(pace, "PATIENCE_WHEN_LIMITED", 1.0)
    for i in range(300):
        endpoint.plan[f"q{i}"] = [PASSING[kind]] * 99
    errors = outcomes(connect(timeout=1.0), [ask(f"q{i}") for i in range(300)])
    assert len(set(map(id, errors))) == 1
    assert "requests in a row failed" in str(errors[0])
    assert endpoint.asked.total() < 60, "nobody waits out their own tries"


def test_an_endpoint_that_dies_midway_keeps_what_it_answered(store, monkeypatch):
    monkeypatch.setattr(pace, "PATIENCE", 0.5)
    with connecting("", store) as connect:
        # Enough to do that a slow machine has not asked everything before it notices the fiftieth answer.
        with FaultyEndpoint(delay=0.1) as endpoint:
            client = connect(endpoint.url)
            futures = client.submit([ask(f"q{i}") for i in range(400)])
            futures[50].result(timeout=30)
        errors = [future.exception(timeout=60) for future in futures]
        assert {"can't be reached" in str(error) for error in errors if error} == {True}
        # Answers come in any order, so those before the fiftieth need not be there.
        assert errors[50] is None
        assert store.count() == errors.count(None)
        assert store.count() <= endpoint.completed.total()


# All of it at once ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_two_thousand_prompts_at_five_percent_faults_are_each_answered_once(endpoint, connect, store):
    questions = [f"q{i}" for i in range(2000)]
    sown = sow(endpoint, questions, share=0.05, seed=7)
    assert len(sown) == 16, "every kind occurs"
    start = time.process_time()
    client = connect(timeout=2.0)
    given = results(client, *map(ask, questions), timeout=100)
    assert time.process_time() - start < 40, "of this process's own time, both sides: cores may be shared"
    assert [answer.text for answer in given] == [f"answer to {question}" for question in questions]
    usable = [kept for kept in store if client.problem(kept) is None]
    assert (len(usable), len({kept.key for kept in usable})) == (2000, 2000)
    assert set(endpoint.completed.values()) == {1}
    # Each sown fault cost one more request, and nothing else did.
    assert endpoint.asked.total() == 2000 + sown.total()
    unusable = sum(sown[kind] for kind in ("refusal", "content filter", "cut off", "empty"))
    overdue = sown["hung"] + sown["slow drip"]
    assert store.count() == client.budget.summary()["calls"] == 2000 + unusable + overdue
