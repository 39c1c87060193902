import base64
import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError

import pytest
from starlette.responses import JSONResponse, Response
from tests.faulty_endpoint import PASSING, FaultyEndpoint, answer, ask, outcomes, results, status

from prism_cli.endpoint import pace
from prism_cli.endpoint.budget import Budget, Caps, Price
from prism_cli.endpoint.client import served_model
from prism_cli.endpoint.endpoint import Endpoint, Sampling
from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.endpoint.requests import EndpointAnswer, EndpointRequest, describe
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import BudgetError, CheckpointError, DataError, TeacherError

M = Endpoint("http://h/v1", "m")
PNG = b"\x89PNG\r\n\x1a\n rest"
ASKER = """
import sys
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.endpoint import Endpoint, Limits
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.endpoint.store import AnswerStore
client = EndpointClient(Endpoint(sys.argv[1], "m", limits=Limits(concurrency=4)), AnswerStore(sys.argv[2]))
futures = client.submit([EndpointRequest([{"role": "user", "content": f"q{i}"}]) for i in range(200)])
for future in futures:
    future.result()
    print("used", flush=True)
"""


pytestmark = pytest.mark.usefixtures("no_key")


# Asked once ----------------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_questions(endpoint, connect):
    endpoint.plan["q0"] = [status(500)]  # the first one comes last
    texts = [given.text for given in results(connect(), *[ask(f"q{i}") for i in range(8)])]
    assert texts == [f"answer to q{i}" for i in range(8)]


def test_equal_requests_of_one_batch_are_asked_once(endpoint, connect):
    client = connect()
    first, second = results(client, ask("q", row="1"), ask("q", row="2"))
    assert first.text == second.text == "answer to q"
    assert endpoint.asked == {"q": 1}
    assert client.budget.summary() == {
        "calls": 1, "cached": 1, "prompt_tokens": 10, "completion_tokens": 5, "usd": None,
    }  # fmt: skip


def test_another_client_on_the_same_store_does_not_ask_again(endpoint, connect, store):
    (asked,) = results(connect(), ask("q"))
    (found,) = results(connect(store=AnswerStore(store.path)), ask("q"))
    assert (asked.cached, found.cached) == (False, True)
    assert found._replace(cached=False) == asked
    assert endpoint.asked == {"q": 1}


def test_an_answer_moves_with_its_model_to_another_endpoint(connect):
    results(connect(), ask("q"))
    with FaultyEndpoint() as elsewhere:
        (found,) = results(connect(elsewhere.url), ask("q"))
        assert found.cached
        assert not elsewhere.asked


def test_two_teachers_with_one_model_name_keep_their_answers_apart(endpoint, connect, store):
    results(connect(name="the school's"), ask("q"))
    results(connect(name="the university's"), ask("q"))
    assert endpoint.asked == {"q": 2}
    assert [(kept.teacher, kept.model) for kept in store] == [("the school's", "m"), ("the university's", "m")]


def test_looking_for_a_kept_answer_asks_and_counts_nothing(endpoint, connect):
    client = connect()
    assert client.kept(ask("q")) is None
    results(client, ask("q"))
    kept = client.kept(ask("q"))
    assert kept is not None
    assert (kept.text, kept.cached) == ("answer to q", True)
    assert (endpoint.asked.total(), client.budget.summary()["cached"]) == (1, 0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("after", [1, 23, 60])
def test_a_process_killed_at_any_instant_loses_no_answer_it_received(endpoint, connect, store, after):
    endpoint.delay = 0.01
    process = subprocess.Popen([sys.executable, "-c", ASKER, endpoint.url, store.path], stdout=subprocess.PIPE)
    for _ in range(after):
        assert process.stdout is not None
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Of the answers the endpoint gave, only those of the four requests under way may have missed their reader.
    given = endpoint.completed.total()
    assert given - 4 <= store.count() <= given
    kept = {json.loads(answer.request)["messages"][0]["content"] for answer in store}
    results(connect(), *[ask(f"q{i}") for i in range(200)])
    assert {endpoint.asked[question] for question in kept} == {1}, "asked again for what was kept"
    assert store.count() == 200
    assert endpoint.asked.total() <= 204
    before = endpoint.asked.total()
    assert all(given.cached for given in results(connect(), *[ask(f"q{i}") for i in range(200)]))
    assert endpoint.asked.total() == before


# Keys ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [ask("other"), ask("q", sample=1), ask("q", images=(PNG,)), EndpointRequest([{"role": "system", "content": "q"}])],
)
def test_what_shapes_the_answer_changes_the_key(changed):
    assert describe(changed, M)[0] != describe(ask("q"), M)[0]


def test_settings_change_the_key_but_the_row_id_does_not():
    one = Endpoint("http://h/v1", "m", sampling=Sampling(1, 9))
    others = [
        one._replace(model="n"),
        one._replace(sampling=Sampling(0.5, 9)),
        one._replace(sampling=Sampling(1, 8)),
        one._replace(name="another teacher"),
    ]
    assert len({describe(ask("q"), each)[0] for each in (one, *others)}) == 5
    elsewhere = Endpoint("http://elsewhere/v1", "m", sampling=Sampling(1.0, 9), caps=Caps(7))
    assert describe(ask("q", row="7"), elsewhere) == describe(ask("q"), one)


def test_the_key_of_a_plain_request_is_what_it_always_was():
    digest = hashlib.sha256(PNG).hexdigest()
    written = (
        f'{{"images": ["{digest}"], "max_tokens": 8192, "messages": [{{"content": "Straße?", "role": "user"}}], '
        '"model": "m", "sample": 0, "temperature": 1.0}'
    )
    plain = describe(ask("Straße?", images=(PNG,), row="7"), M)
    assert plain == (hashlib.sha256(written.encode()).hexdigest(), written)
    # Naming a teacher after its model, or the message the pictures go with anyway, changes nothing.
    assert describe(ask("Straße?", images=(PNG,), images_at=0), M._replace(name="m")) == plain


def test_where_the_pictures_stand_is_part_of_the_key():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    first, last, plain = [EndpointRequest(turns, (PNG,), images_at=at) for at in (0, 2, -1)]
    assert describe(last, M) == describe(plain, M) != describe(first, M)


# On the wire ---------------------------------------------------------------------------------------------------------


def test_images_are_sent_as_read_before_the_question(endpoint, connect):
    request = EndpointRequest([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], images=(PNG,))
    client = connect(temperature=0.5, max_tokens=77)
    results(client, request)
    body = endpoint.bodies[0]
    assert body == client.body(request)
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0.5, 77, "m")
    assert body["messages"][0] == {"role": "system", "content": "s"}
    picture, text = body["messages"][1]["content"]
    media, _, data = picture["image_url"]["url"].partition(";base64,")
    assert (media, base64.b64decode(data)) == ("data:image/png", PNG)
    assert text == {"type": "text", "text": "q"}


def test_images_go_with_the_message_they_belong_to(endpoint, connect):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "q"}]
    results(connect(), EndpointRequest(turns, images=(PNG,), images_at=0))
    contents = [message["content"] for message in endpoint.bodies[0]["messages"]]
    assert [part["type"] for part in contents[0]] == ["image_url", "text"]
    assert contents[1:] == ["b", "q"]


def test_an_unknown_kind_of_image_is_refused_before_anything_is_asked(endpoint, connect):
    with pytest.raises(DataError, match="row 7"):
        connect().submit([ask("q"), ask("r", images=(b"II*\0 a tiff",), row="7")])
    assert not endpoint.asked


def test_a_model_that_wants_the_limit_under_its_new_name_gets_it(endpoint, connect):
    for question in ("a", "b"):  # both are under way when the first learns it
        endpoint.plan[question] = [status(400, "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead.")]
    results(connect(max_tokens=77), ask("a"), ask("b"))
    assert endpoint.bodies[-1]["max_completion_tokens"] == 77
    assert "max_tokens" not in endpoint.bodies[-1]


@pytest.mark.parametrize("bound", [1, 3])
def test_concurrency_reaches_its_bound_and_never_exceeds_it(endpoint, connect, bound):
    endpoint.delay = 0.03
    results(connect(concurrency=bound), *[ask(f"q{i}") for i in range(12)])
    assert endpoint.most_at_once == bound


# Answers that can't be used ------------------------------------------------------------------------------------------


def billed_without_choices(question):
    usage = {"prompt_tokens": 10, "completion_tokens": 0}
    return JSONResponse({"id": "1", "model": "m", "choices": [], "usage": usage})


UNUSABLE = [
    pytest.param(answer(None, refusal="I won't"), "refused", "refusal", id="refused"),
    pytest.param(answer("part of it", finish_reason="content_filter"), "filtered", "content_filter", id="filtered"),
    pytest.param(answer(None), "empty", "empty", id="empty"),
    pytest.param(answer("half an ans", finish_reason="length"), "cut off", "length", id="cut off"),
    pytest.param(answer(None, finish_reason="length"), "cut off", "length", id="cut off while thinking"),
    pytest.param(answer("no tags at all"), "malformed", "stop", id="malformed"),
    pytest.param(answer(None, finish_reason="max_tokens"), "cut off", "max_tokens", id="cut off by another name"),
    pytest.param(answer("half an ans", finish_reason="abort"), "cut off", "abort", id="aborted"),
    pytest.param(answer("part of it", finish_reason="SAFETY"), "filtered", "SAFETY", id="filtered by another name"),
    pytest.param(billed_without_choices, "empty", "empty", id="billed without choices"),
]


def no_tags(text):
    return "there are no tags" if "no tags" in text else None


@pytest.mark.parametrize(("fault", "reason", "finish"), UNUSABLE)
def test_an_unusable_answer_is_kept_for_the_bill_and_asked_again(endpoint, connect, store, fault, reason, finish):
    endpoint.plan["q"] = [fault]
    client = connect(check=no_tags, budget=Budget(price=Price(1e6, 0.0)))
    (given,) = results(client, ask("q", row="7"))
    assert (given.text, given.cached) == ("answer to q", False)
    assert [(kept.attempt, kept.finish, client.problem(kept), kept.usd, kept.row) for kept in store] == [
        (1, finish, reason, 10.0, "7"),
        (2, "stop", None, 10.0, "7"),
    ]
    assert client.budget.summary()["calls"] == 2


@pytest.mark.parametrize(("fault", "reason", "finish"), UNUSABLE)
def test_after_as_many_attempts_the_request_fails_alone(endpoint, connect, store, fault, reason, finish):
    endpoint.plan["q"] = [fault] * 9
    client = connect(check=no_tags, attempts=2)
    failed, other = outcomes(client, [ask("q", row="7"), ask("r")])
    assert isinstance(failed, NoAnswerError)
    assert failed.reason == reason
    assert f"row 7: m at {endpoint.url} gave no usable answer in 2 attempts" in str(failed)
    assert other.text == "answer to r"
    # The attempts stand in the store: another start does not begin them anew.
    (again,) = outcomes(connect(check=no_tags, attempts=2), [ask("q")])
    assert again.reason == reason
    assert endpoint.asked == {"q": 2, "r": 1}
    # More attempts, more asking.
    outcomes(connect(check=no_tags, attempts=3), [ask("q")])
    assert endpoint.asked["q"] == 3


def test_whether_an_answer_can_be_used_is_decided_when_it_is_read(endpoint, connect):
    endpoint.plan["q"] = [answer("no tags")]
    assert results(connect(), ask("q"))[0].text == "no tags"
    strict = connect(check=no_tags)
    assert strict.kept(ask("q")) is None
    assert results(strict, ask("q"))[0].text == "answer to q"
    assert results(connect(), ask("q"))[0].text == "no tags", "the first usable one stays the answer"
    assert endpoint.asked == {"q": 2}


def test_the_cost_time_and_origin_of_an_answer_are_kept(endpoint, connect, store):
    endpoint.plan["q"] = [answer("yes", model="m-2026-11")]
    endpoint.delay = 0.2
    results(connect(budget=Budget(price=Price(prompt=2.0, completion=10.0), run="a run")), ask("q", row="7"))
    (kept,) = store.answers(connect().key(ask("q")))
    # 10 · 2 $/M + 5 · 10 $/M
    assert (kept.usd, kept.prompt_tokens, kept.completion_tokens) == (7e-5, 10, 5)
    assert (kept.url, kept.served_model, kept.row, kept.run) == (endpoint.url, "m-2026-11", "7", "a run")
    assert kept.seconds is not None
    assert 0.2 <= kept.seconds < 5


# Failures that end the client ----------------------------------------------------------------------------------------


def test_a_missing_key_is_told_by_the_variables_name(connect):
    with pytest.raises(TeacherError, match=r"https://api\.example\.org/v1.*OPENAI_API_KEY"):
        connect("https://api.example.org/v1")


def test_an_endpoint_on_this_machine_needs_no_key(endpoint, connect):
    results(connect(), ask("q"))
    assert endpoint.keys == ["Bearer none"]


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "http://", "http://host:port/v1", "http://[1/v1"])
def test_what_is_no_url_is_refused_at_once(connect, url):
    with pytest.raises(TeacherError, match="no endpoint"):
        connect(url)


def test_an_endpoint_that_is_not_there_is_named_with_its_url(connect, monkeypatch):
    monkeypatch.setattr(pace, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(TeacherError, match=f"http://127.0.0.1:{port}/v1 can't be reached") as caught:
        results(connect(f"http://127.0.0.1:{port}/v1"), *[ask(f"q{i}") for i in range(8)])
    assert "prism teacher serve" in (caught.value.hint or "")


def test_after_a_failure_that_stays_nothing_more_is_asked(endpoint, connect):
    endpoint.plan["q0"] = [status(401)]
    client = connect(concurrency=1)
    errors = outcomes(client, [ask(f"q{i}") for i in range(50)], timeout=10)
    assert endpoint.asked == {"q0": 1}
    assert len(set(map(id, errors))) == 1
    with pytest.raises(TeacherError, match="401"):
        results(client, ask("later"))
    assert endpoint.asked == {"q0": 1}


# Budget and closing --------------------------------------------------------------------------------------------------


def test_a_budget_stops_with_exit_code_3_and_keeps_what_was_paid(endpoint, connect, store):
    endpoint.delay = 0.05
    errors = outcomes(connect(budget=Budget(Caps(max_calls=3))), [ask(f"q{i}") for i in range(10)], timeout=10)
    assert [error.text for error in errors[:3]] == [f"answer to q{i}" for i in range(3)]
    assert {(type(error), error.exit_code) for error in errors[3:]} == {(BudgetError, 3)}
    assert endpoint.asked.total() == store.count() == 3
    # With more budget the same questions cost only the seven that are missing.
    rest = connect(budget=Budget(Caps(max_calls=7)))
    assert [given.cached for given in results(rest, *[ask(f"q{i}") for i in range(10)])] == [True] * 3 + [False] * 7


def test_a_request_that_brought_no_reply_uses_up_no_budget(endpoint, connect):
    endpoint.plan["q"] = [status(500), status(429)]
    client = connect(budget=Budget(Caps(max_calls=1)))
    assert results(client, ask("q"))[0].text == "answer to q"
    assert client.budget.summary()["calls"] == 1


def test_a_cap_in_dollars_is_not_overshot_and_what_is_under_way_is_waited_for(endpoint, connect, store):
    # A question of 2 bytes and 16 around it, an answer of at most 5 tokens: $1.8 + $2.5; it costs $1 + $2.5.
    budget = Budget(Caps(max_usd=15.0), price=Price(1e5, 5e5))
    endpoint.delay = 0.05
    errors = outcomes(connect(budget=budget, max_tokens=5), [ask(f"q{i}") for i in range(10)], timeout=20)
    # Three fit at once. When these cost $10.5, a fourth (4.3) does; then $14 are spent and a fifth does not.
    assert Counter(type(error) for error in errors) == {EndpointAnswer: 4, BudgetError: 6}
    assert endpoint.asked.total() == store.count() == 4
    assert (endpoint.most_at_once, budget.summary()["usd"]) == (3, 14.0)


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 2**63, "completion_tokens": 5}])
def test_a_reply_without_a_count_of_its_tokens_costs_the_most_it_can(endpoint, connect, store, usage):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
    endpoint.plan["q"] = [lambda question: JSONResponse({"model": "m", "choices": [choice], "usage": usage})]
    client = connect(budget=Budget(Caps(max_usd=20.0), price=Price(1e6, 0.0)), max_tokens=5)
    assert results(client, ask("q"))[0].text == "yes"
    # 1 byte, and 16 around it, at a dollar each.
    assert [kept.usd for kept in store] == [client.budget.summary()["usd"]] == [17.0]


@pytest.mark.parametrize("kind", ["hung", "slow drip"])
def test_a_call_that_is_waited_for_no_longer_counts_at_worst(endpoint, connect, store, kind):
    endpoint.plan["q"] = [PASSING[kind]]
    client = connect(timeout=0.5, budget=Budget(price=Price(1e6, 0.0), run="a run"))
    assert results(client, ask("q"))[0].text == "answer to q"
    # $17 at worst (1 byte, and 16 around it), then 10 tokens.
    assert (client.budget.summary()["calls"], client.budget.summary()["usd"]) == (2, 27.0)
    assert [(kept.finish, kept.text, kept.usd) for kept in store] == [
        ("overdue", "", 17.0),
        ("stop", "answer to q", 10.0),
    ]
    assert store.spent("a run")["usd"] == 27.0
    assert [kept.finish for kept in store.answers(client.key(ask("q")))] == ["stop"], (
        "it is no attempt of another start"
    )


def test_half_a_character_loses_no_answer(endpoint, connect, store):
    body = b'{"model": "m\\ud83d", "choices": [{"finish_reason": "stop", "message": {"content": "smile \\ud83d"}}]}'
    endpoint.plan["q"] = [lambda question: Response(body, media_type="application/json")]
    assert results(connect(), ask("q"))[0].text == "smile ?"
    assert [(kept.text, kept.served_model) for kept in store] == [("smile ?", "m?")]


def test_an_answer_that_can_not_be_kept_ends_its_future_and_leaves_no_reservation(
    endpoint, connect, store, monkeypatch
):
    store._writer.execute("PRAGMA max_page_count = 10")
    endpoint.plan["q"] = [answer("x" * 100_000)]
    client = connect(budget=Budget(Caps(max_calls=2)))
    with pytest.raises(CheckpointError, match="full"):
        results(client, ask("q"))
    assert client.budget.reserve() is not None, "one call is counted, none is under way"


@pytest.mark.timeout(60)
def test_what_is_under_way_when_a_client_closes_patiently_is_kept(endpoint, connect, store):
    endpoint.delay = 0.5
    client = connect(concurrency=2)
    futures = client.submit([ask(f"q{i}") for i in range(5)])
    while endpoint.asked.total() < 2:
        time.sleep(0.01)
    client.close(patience=3600)
    assert (endpoint.asked.total(), store.count()) == (2, 2), "nothing more was sent"
    assert [future.exception(timeout=0) is None for future in futures] == [True, True, False, False, False]


def test_a_patient_client_does_not_wait_for_ever(endpoint, connect):
    endpoint.delay = 30
    client = connect()
    futures = client.submit([ask("q")])
    while not endpoint.asked:
        time.sleep(0.01)
    client.close(patience=0.5)
    assert futures[0].cancelled()
    assert not endpoint.completed


def test_closing_drops_what_is_under_way_without_hanging(endpoint, connect):
    endpoint.delay = 30
    client = connect(concurrency=2)
    futures = client.submit([ask(f"q{i}") for i in range(5)])
    while endpoint.asked.total() < 2:
        time.sleep(0.01)
    client.close()
    client.close()
    assert not endpoint.completed
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=0)
    assert not [thread for thread in threading.enumerate() if thread is client._thread]


# Which model ---------------------------------------------------------------------------------------------------------


def test_the_only_model_an_endpoint_serves_is_found(endpoint):
    assert served_model(Endpoint(endpoint.url, None)) == "m"


def test_several_models_are_listed_to_choose_from(endpoint):
    endpoint.models = ["a", "b"]
    with pytest.raises(TeacherError, match=r"2 models \(a, b\)"):
        served_model(Endpoint(endpoint.url, None))
