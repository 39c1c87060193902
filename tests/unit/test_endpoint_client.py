import base64
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import CancelledError

import pytest
from tests.faulty_endpoint import FaultyEndpoint, answer, broken_off, no_choices, status, web_page

from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.client import EndpointClient, served_model
from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.endpoint.requests import EndpointRequest, describe
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import BudgetError, DataError, TeacherError

SECRET = "sk-very-secret-0123456789"
PNG = b"\x89PNG\r\n\x1a\n rest"
KILLED_ASKER = """
import os, signal, sys
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.endpoint.store import AnswerStore
client = EndpointClient(sys.argv[1], "m", store=AnswerStore(sys.argv[2]), concurrency=1)
futures = client.submit([EndpointRequest([{"role": "user", "content": f"q{i}"}]) for i in range(6)])
for future in futures[:3]:
    future.result()
os.kill(os.getpid(), signal.SIGKILL)
"""


def ask(question: str, **rest) -> EndpointRequest:
    return EndpointRequest([{"role": "user", "content": question}], **rest)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def endpoint():
    with FaultyEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def store(tmp_path):
    return AnswerStore(tmp_path / "answers.sqlite")


@pytest.fixture
def connect(endpoint, store):
    clients = []

    def connect(url=endpoint.url, **settings) -> EndpointClient:
        clients.append(EndpointClient(url, settings.pop("model", "m"), **{"store": store, **settings}))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def results(client, *requests):
    return [future.result(timeout=30) for future in client.submit(requests)]


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


@pytest.mark.timeout(120)
def test_a_killed_process_does_not_ask_again_for_what_it_got(endpoint, connect, store):
    killed = subprocess.run([sys.executable, "-c", KILLED_ASKER, endpoint.url, store.path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert store.count() >= 3
    results(connect(), *[ask(f"q{i}") for i in range(6)])
    assert [endpoint.asked[f"q{i}"] for i in range(3)] == [1, 1, 1]
    assert store.count() == 6
    # Only the one that was under way when the process died may have come twice.
    assert endpoint.asked.total() <= 7


@pytest.mark.parametrize(
    "changed",
    [ask("other"), ask("q", sample=1), ask("q", images=(PNG,)), EndpointRequest([{"role": "system", "content": "q"}])],
)
def test_what_shapes_the_answer_changes_the_key(changed):
    assert describe(changed, "m", 1.0, 100)[0] != describe(ask("q"), "m", 1.0, 100)[0]


def test_settings_change_the_key_but_the_row_id_does_not():
    keys = {describe(ask("q"), *settings)[0] for settings in [("m", 1, 9), ("n", 1, 9), ("m", 0.5, 9), ("m", 1, 8)]}
    assert len(keys) == 4
    assert describe(ask("q", row="7"), "m", 1.0, 9) == describe(ask("q"), "m", 1, 9)


# On the wire ---------------------------------------------------------------------------------------------------------


def test_images_are_sent_as_read_before_the_question(endpoint, connect):
    request = EndpointRequest([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], images=(PNG,))
    results(connect(temperature=0.5, max_tokens=77), request)
    body = endpoint.bodies[0]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0.5, 77, "m")
    assert body["messages"][0] == {"role": "system", "content": "s"}
    picture, text = body["messages"][1]["content"]
    media, _, data = picture["image_url"]["url"].partition(";base64,")
    assert (media, base64.b64decode(data)) == ("data:image/png", PNG)
    assert text == {"type": "text", "text": "q"}


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


# Failures that pass --------------------------------------------------------------------------------------------------


def test_retry_after_is_honoured(endpoint, connect):
    endpoint.plan["q"] = [status(429, retry_after="2")]
    start = time.monotonic()
    (given,) = results(connect(), ask("q"))
    # Without the header the first pause is at most half a second.
    assert time.monotonic() - start >= 2
    assert given.text == "answer to q"


@pytest.mark.parametrize("fault", [status(500), status(503), broken_off])
def test_a_passing_failure_is_asked_again(endpoint, connect, fault):
    endpoint.plan["q"] = [fault]
    client = connect()
    assert results(client, ask("q"))[0].text == "answer to q"
    assert endpoint.asked == {"q": 2}
    assert client.budget.summary()["calls"] == 1


# Failures that stay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (answer(None, refusal="I won't"), "refused"),
        (answer("part of it", finish_reason="content_filter"), "filtered"),
        (answer(None), "empty"),
        (answer("  \n", finish_reason="length"), "length"),
        (no_choices, "no choices"),
        (status(400, "too many pixels"), "too many pixels"),
    ],
)
def test_refusals_are_not_cached(endpoint, connect, store, fault, said):
    endpoint.plan["q"] = [fault]
    client = connect()
    with pytest.raises(NoAnswerError, match=f"row 7: .*{said}"):
        results(client, ask("q", row="7"))
    assert store.count() == 0
    # It concerned that request alone: the client goes on, and may ask it again.
    assert [given.text for given in results(client, ask("r"), ask("q"))] == ["answer to r", "answer to q"]


def test_a_refused_key_is_told_by_the_variables_name(endpoint, connect, store, monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    endpoint.plan["q"] = [status(401, f"Incorrect API key provided: {SECRET}")]
    with pytest.raises(TeacherError, match="MY_KEY") as caught:
        results(connect(api_key_env="MY_KEY"), ask("q"))
    assert endpoint.keys == [f"Bearer {SECRET}"]
    assert "MY_KEY" in caught.value.hint
    assert endpoint.asked == {"q": 1}


@pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 500])
def test_the_key_shows_nowhere(endpoint, connect, store, monkeypatch, code):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    endpoint.plan["q"] = [status(code, f"bad key {SECRET}", x_should_retry="false")]
    client = connect(endpoint.url.replace("127", "user:hunter2@127", 1))
    results(client, ask("fine"))
    with pytest.raises(TeacherError) as caught:
        results(client, ask("q"))
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    shown += f"{caught.value!r} {caught.value.hint} {client!r} {vars(client)}"
    links = [caught.value]
    while links[-1] is not None:
        links.append(links[-1].__cause__ or links[-1].__context__)
    written = b"".join(file.read_bytes() for file in store.path.parent.glob("answers.sqlite*"))
    assert b"answer to fine" in written
    assert SECRET.encode() not in written
    # The test itself names the secret in its own frame's source, so only the library's frames are looked at.
    own = [line for line in shown.splitlines() if "test_endpoint_client" not in line]
    assert SECRET not in "\n".join(own)
    assert "hunter2" not in str(caught.value)
    assert not [link for link in links if link is not None and not isinstance(link, TeacherError)]


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


def test_an_unknown_model_is_named(endpoint, connect):
    endpoint.plan["q"] = [status(404)]
    with pytest.raises(TeacherError, match="does not know big-model"):
        results(connect(model="big-model"), ask("q"))


def test_an_endpoint_that_is_not_there_is_named_with_its_url(connect):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(TeacherError, match=f"http://127.0.0.1:{port}/v1 can't be reached") as caught:
        results(connect(f"http://127.0.0.1:{port}/v1", max_retries=0), ask("q"))
    assert "prism teacher serve" in caught.value.hint


def test_a_web_page_is_no_answer(endpoint, connect, store):
    endpoint.plan["q"] = [web_page]
    with pytest.raises(TeacherError):
        results(connect(), ask("q"))
    assert store.count() == 0


def test_after_a_failure_that_stays_nothing_more_is_asked(endpoint, connect):
    endpoint.plan["q0"] = [status(401)]
    client = connect(concurrency=1)
    futures = client.submit([ask(f"q{i}") for i in range(50)])
    errors = [future.exception(timeout=10) for future in futures]
    assert endpoint.asked == {"q0": 1}
    assert len(set(map(id, errors))) == 1
    with pytest.raises(TeacherError, match="401"):
        results(client, ask("later"))
    assert endpoint.asked == {"q0": 1}


# Budget and closing --------------------------------------------------------------------------------------------------


def test_a_budget_stops_with_exit_code_3_and_keeps_what_was_paid(endpoint, connect, store):
    endpoint.delay = 0.05
    futures = connect(budget=Budget(max_calls=3)).submit([ask(f"q{i}") for i in range(10)])
    errors = [future.exception(timeout=10) for future in futures]
    assert errors[:3] == [None] * 3
    assert {(type(error), error.exit_code) for error in errors[3:]} == {(BudgetError, 3)}
    assert endpoint.asked.total() == store.count() == 3
    # With more budget the same questions cost only the seven that are missing.
    rest = connect(budget=Budget(max_calls=7))
    assert [given.cached for given in results(rest, *[ask(f"q{i}") for i in range(10)])] == [True] * 3 + [False] * 7


def test_closing_drops_what_is_under_way_without_hanging(endpoint, connect):
    endpoint.delay = 30
    client = connect(concurrency=2)
    futures = client.submit([ask(f"q{i}") for i in range(5)])
    while endpoint.asked.total() < 2:
        time.sleep(0.01)
    start = time.monotonic()
    client.close()
    client.close()
    assert time.monotonic() - start < 5
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=0)
    assert not [thread for thread in threading.enumerate() if thread is client._thread]


# Which model ---------------------------------------------------------------------------------------------------------


def test_the_only_model_an_endpoint_serves_is_found(endpoint):
    assert served_model(endpoint.url) == "m"


def test_several_models_are_listed_to_choose_from(endpoint):
    endpoint.models = ["a", "b"]
    with pytest.raises(TeacherError, match=r"2 models \(a, b\)"):
        served_model(endpoint.url)
