"""The embedded endpoint, through the real client and over real sockets."""

import base64
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import httpx
import openai
import pytest

from prism_cli.errors import DataError, PrismError
from prism_cli.teacher.server import MAX_BODY_BYTES, ChatRequest, ServedEndpoint, create_app

PICTURE = b"\x89PNG not really"
PICTURE_URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
received: list[ChatRequest] = []


def answer(request: ChatRequest) -> list[str]:
    received.append(request)
    if request.question == "riddle":
        raise DataError("can't read 'riddle'", hint="ask something else")
    if request.question == "crash":
        raise ZeroDivisionError("by nothing")
    return [f"answer {i} to {request.question}" for i in range(request.n)]


@pytest.fixture(scope="module")
def url():
    with ServedEndpoint(create_app(answer, "world", api_key="secret")) as server:
        yield server.url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
        yield client


def _user(content):
    return [{"role": "user", "content": content}]


def _picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


def _post(url, **change):
    body = {"model": "world", "messages": _user("hello")} | change
    return httpx.post(f"{url}/chat/completions", json=body, headers={"Authorization": "Bearer secret"})


def _assert_error(response, status, words):
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    return error


def test_a_client_gets_n_answers_and_word_counts(client):
    reply = client.chat.completions.create(model="world", messages=_user("two words"), n=2)
    assert [c.message.content for c in reply.choices] == ["answer 0 to two words", "answer 1 to two words"]
    assert [(c.index, c.finish_reason) for c in reply.choices] == [(0, "stop"), (1, "stop")]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (2, 10, 12)
    assert reply.model == "world"


def test_everything_asked_reaches_the_answering_function(client):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "indeed"},
        *_user([{"type": "text", "text": "what is at b2 ?"}, _picture(PICTURE_URL)]),
    ]
    client.chat.completions.create(model="world", messages=messages, temperature=0.5, n=3, seed=7)
    assert received[-1] == ChatRequest("be brief", "what is at b2 ?", [PICTURE], 0.5, 3, 7)


def test_what_is_left_out_or_null_takes_the_protocols_defaults(url):
    assert _post(url, temperature=None, n=None, seed=None, top_p=0.7).status_code == 200
    assert received[-1] == ChatRequest(None, "hello", [], 1.0, 1, None)


def test_bare_base64_is_an_image_too(url):
    assert _post(url, messages=_user([_picture(base64.b64encode(PICTURE).decode())])).status_code == 200
    assert received[-1].images == [PICTURE]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_answers_are_cut_after_so_many_words(client, name):
    reply = client.chat.completions.create(model="world", messages=_user("x"), **{name: 2})
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("answer 0", "length")
    assert reply.usage.completion_tokens == 2
    whole = client.chat.completions.create(model="world", messages=_user("x"), **{name: 4})
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("answer 0 to x", "stop")


def test_the_model_is_listed_and_health_needs_no_key(client, url):
    assert [model.id for model in client.models.list()] == ["world"]
    assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_a_wrong_key_is_401_for_the_client(url):
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(model="world", messages=_user("hello"))
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_missing_key_is_401(url):
    _assert_error(httpx.post(f"{url}/chat/completions", json={}), 401, "API key")


def test_without_a_key_set_any_key_will_do():
    with (
        ServedEndpoint(create_app(answer, "world")) as server,
        openai.OpenAI(base_url=server.url, api_key="whatever") as client,
    ):
        assert client.chat.completions.create(model="world", messages=_user("x")).choices


def test_an_unknown_model_is_404_for_the_client(client):
    with pytest.raises(openai.NotFoundError, match="'gpt' here, only 'world'") as caught:
        client.chat.completions.create(model="gpt", messages=_user("hello"))
    assert caught.value.code == "model_not_found"


def test_an_unanswerable_question_is_400_with_message_and_hint(client):
    with pytest.raises(openai.BadRequestError, match=r"can't read 'riddle' \(ask something else\)"):
        client.chat.completions.create(model="world", messages=_user("riddle"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stream": True}, "does not stream"),
        ({"messages": []}, "no user message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no user message"),
        ({"messages": "hello"}, "messages:"),
        ({"messages": _user([{"type": "input_audio"}])}, "messages.0.content"),
        ({"messages": _user([_picture("https://example.com/a.png")])}, "not fetched"),
        ({"messages": _user([_picture("data:image/png;base64,@@@")])}, "base64"),
        ({"messages": _user([_picture("données")])}, "base64"),
        ({"n": 0}, "n:"),
        ({"n": 129}, "n:"),
        ({"temperature": 3}, "temperature:"),
        ({"max_tokens": 0}, "max_tokens:"),
    ],
)
def test_a_wrong_request_is_400_saying_what(url, change, words):
    error = _assert_error(_post(url, **change), 400, words)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b""])
def test_a_body_that_is_no_json_object_is_400(url, content):
    headers = {"Authorization": "Bearer secret"}
    assert httpx.post(f"{url}/chat/completions", content=content, headers=headers).status_code == 400


def test_a_body_over_the_limit_is_413_and_one_at_it_is_not(url):
    headers = {"Authorization": "Bearer secret"}
    over = httpx.post(f"{url}/chat/completions", content=b" " * (MAX_BODY_BYTES + 1), headers=headers)
    _assert_error(over, 413, str(MAX_BODY_BYTES))
    at = httpx.post(f"{url}/chat/completions", content=b" " * MAX_BODY_BYTES, headers=headers)
    _assert_error(at, 400, "no JSON")


def test_other_paths_and_methods_are_errors_of_the_same_shape(url):
    _assert_error(httpx.post(f"{url}/completions", json={}), 404, "/v1/completions")
    _assert_error(httpx.get(f"{url}/chat/completions"), 405, "GET")


def test_a_crash_of_the_answering_function_is_500_and_the_next_request_is_served(client):
    with pytest.raises(openai.InternalServerError, match="ZeroDivisionError: by nothing"):
        client.chat.completions.create(model="world", messages=_user("crash"))
    assert client.chat.completions.create(model="world", messages=_user("x")).choices


def test_slow_answers_run_side_by_side():
    together = threading.Barrier(4, timeout=10)

    def wait_for_others(request):
        together.wait()
        return ["done"]

    with ServedEndpoint(create_app(wait_for_others, "world")) as server, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: _post(server.url), range(4)))
    assert [reply.status_code for reply in replies] == [200] * 4


def test_delay_holds_each_answer_back():
    with ServedEndpoint(create_app(answer, "world", delay=0.3)) as server:
        started = time.monotonic()
        assert _post(server.url).status_code == 200
        assert time.monotonic() - started >= 0.3


def test_a_taken_port_is_an_error_with_advice(url):
    port = httpx.URL(url).port
    with (
        pytest.raises(PrismError, match=f"127.0.0.1:{port}") as caught,
        ServedEndpoint(create_app(answer, "world"), port=port),
    ):
        pass
    assert "another port" in caught.value.hint


def test_a_port_that_does_not_exist_is_an_error():
    with pytest.raises(PrismError), ServedEndpoint(create_app(answer, "world"), port=70000):
        pass


def _interrupt_while_serving(client, port):
    with ServedEndpoint(create_app(answer, "world"), port) as server:
        assert client.get(urljoin(server.address, "health")).status_code == 200
        raise KeyboardInterrupt


def test_leaving_by_an_interrupt_frees_port_and_sockets():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gc.collect()
    with warnings.catch_warnings(record=True) as caught, httpx.Client() as client:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                _interrupt_while_serving(client, port)
            with pytest.raises(httpx.TransportError):
                client.get(f"http://127.0.0.1:{port}/health")
        gc.collect()
    assert not [w for w in caught if "socket" in str(w.message)]


def test_entering_and_leaving_at_once_leaves_no_thread():
    before = threading.active_count()
    for _ in range(3):
        with ServedEndpoint(create_app(answer, "world")):
            pass
    assert threading.active_count() <= before


def test_only_loopback_is_bound():
    with ServedEndpoint(create_app(answer, "world")) as server:
        port = httpx.URL(server.url).port
        other = socket.socket()
        with other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", port))


def test_the_blocking_server_announces_itself_and_stops_cleanly_on_ctrl_c():
    code = (
        "from prism_cli.local_server import serve_forever\n"
        "from prism_cli.teacher.server import base_url, create_app\n"
        "app = create_app(lambda r: ['hi'] * r.n, 'm')\n"
        "try:\n"
        "    serve_forever(app, 0, lambda address: print(base_url(address), flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip()
    assert _post(url, model="m").json()["choices"][0]["message"]["content"] == "hi"
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")


def _batch_line(id, question, **change):
    line = {"custom_id": id, "method": "POST", "url": "/v1/chat/completions"}
    return line | {"body": {"model": "world", "messages": _user(question)}} | change


def _submit(client, *lines, metadata=None):
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    assert client.files.content(file.id).content == content
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata or {}
    )


def _ended(client, id, within=10):
    deadline = time.monotonic() + within
    while (batch := client.batches.retrieve(id)).status in ("validating", "in_progress", "cancelling"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
    return batch


def _results(client, file_id):
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line for line in lines}


def test_a_batch_answers_each_line_and_puts_what_failed_into_the_error_file(client):
    lines = [_batch_line("a", "hello"), _batch_line("b", "riddle"), _batch_line("c", "crash")]
    batch = _ended(client, _submit(client, *lines).id)
    assert batch.status == "completed"
    answered, failed = _results(client, batch.output_file_id), _results(client, batch.error_file_id)
    assert answered["a"]["response"]["body"]["choices"][0]["message"]["content"] == "answer 0 to hello"
    assert {id: line["response"]["status_code"] for id, line in failed.items()} == {"b": 400, "c": 500}
    assert batch.request_counts.total == 3


def test_a_batch_with_a_broken_line_fails_whole_and_says_where(client):
    batch = _ended(client, _submit(client, _batch_line("a", "x"), _batch_line("a", "y"), {"custom_id": "c"}).id)
    assert batch.status == "failed"
    assert [(problem.code, problem.line) for problem in batch.errors.data] == [
        ("duplicate_custom_id", 2),
        ("invalid_json_line", 3),
    ]
    assert batch.output_file_id is None


def test_batches_are_listed_newest_first_page_by_page_with_their_metadata(client):
    ids = [_submit(client, _batch_line("a", "x"), metadata={"mark": str(i)}).id for i in range(3)]
    first = client.batches.list(limit=2)
    assert [batch.id for batch in first.data] == ids[:0:-1]
    assert first.has_more
    assert [batch.metadata["mark"] for batch in client.batches.list(limit=1, after=ids[1]).data] == ["0"]
    assert len(list(client.batches.list(limit=2))) >= 3


def test_a_batch_past_its_window_expires_and_one_cancelled_stops_each_with_what_came():
    slow = threading.Event()

    def some_slow(request):
        if request.question == "slow":
            slow.wait(1)
        return [f"answer to {request.question}"]

    app = create_app(some_slow, "world", batch_window=0.3)
    with ServedEndpoint(app) as server, openai.OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        lines = [_batch_line("a", "x"), _batch_line("b", "slow")]
        batch = _ended(client, _submit(client, *lines).id)
        cancelled = _submit(client, *lines)
        client.batches.cancel(cancelled.id)
        cancelled = _ended(client, cancelled.id)
        slow.set()
        assert batch.status == "expired"
        assert set(_results(client, batch.output_file_id)) == {"a"}
        assert _results(client, batch.error_file_id)["b"]["error"]["code"] == "batch_expired"
        assert cancelled.status == "cancelled"
        assert "b" in _results(client, cancelled.error_file_id)
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)


def test_files_and_batches_need_the_key_and_unknown_ones_are_404(client, url):
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
        for call in (stranger.batches.list, lambda: stranger.files.content("file-1")):
            with pytest.raises(openai.AuthenticationError):
                call()
    for call in (client.batches.retrieve, client.files.retrieve, client.files.content):
        with pytest.raises(openai.NotFoundError):
            call("none")
    file = client.files.create(file=("x.jsonl", b"{}\n"), purpose="batch")
    assert (client.files.retrieve(file.id).bytes, client.files.delete(file.id).deleted) == (3, True)
