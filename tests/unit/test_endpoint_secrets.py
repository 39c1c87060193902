"""The API key is sent to the endpoint and shown nowhere else."""

import json
import logging
import traceback

import pytest
from starlette.responses import JSONResponse
from tests.faulty_endpoint import PASSING, ask, connecting, outcomes, results, status

from prism_cli.endpoint import failures, pace
from prism_cli.endpoint.client import served_model
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.errors import PrismError, TeacherError
from prism_cli.teacher.sources import EndpointSource

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setattr(failures, "_TRIES", 1)
    monkeypatch.setattr(failures, "_TRIES_WHEN_LIMITED", 1)
    monkeypatch.setattr(pace, "PATIENCE", 0.0)


def everything(error: BaseException) -> str:
    """All that a traceback could show, local variables and every error behind this one included."""
    shown, links = [], [error]
    while links:
        link = links.pop()
        told = traceback.TracebackException.from_exception(link, capture_locals=True)
        # This file's own frames hold the secret in their source; only the library's are looked at.
        told.stack[:] = [frame for frame in told.stack if "test_endpoint_secrets" not in frame.filename]
        shown += [*told.format(chain=False), repr(link), repr(vars(link)), str(getattr(link, "hint", ""))]
        links += [behind for behind in (link.__cause__, link.__context__) if behind is not None]
    return "\n".join(shown)


def behind(error: BaseException | None) -> list[BaseException]:
    return [] if error is None else [error, *behind(error.__cause__), *behind(error.__context__)]


def told_by(code: int):
    return status(code, f"bad key {SECRET}")


@pytest.mark.parametrize("fault", [*map(told_by, (400, 401, 402, 403, 404, 429, 500)), *PASSING.values()])
def test_the_key_shows_in_no_error_log_or_store(endpoint, store, caplog, fault):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2", "asyncio", "prism_cli"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    endpoint.plan["q"] = [fault] * 9
    with connecting(endpoint.url, store) as connect:
        client = connect(key_env="MY_KEY", timeout=2.0, attempts=1)
        fine, failed = *results(client, ask("fine")), *outcomes(client, [ask("q", row="7")])
        assert endpoint.keys[0] == f"Bearer {SECRET}"
        teacher = EndpointSource(client)
        shown = (
            f"{client!r} {vars(client)} {vars(client._wire)} {teacher!r} {vars(teacher)} {fine!r} {everything(failed)}"
        )
    assert isinstance(failed, TeacherError)
    assert {type(link).__module__.partition(".")[0] for link in behind(failed)} <= {"prism_cli"}
    written = b"".join(file.read_bytes() for file in store.path.parent.glob("answers.sqlite*"))
    assert b"answer to fine" in written
    assert "Request" in caplog.text or "request" in caplog.text, "there is a log to look at"
    assert SECRET not in shown + caplog.text
    assert SECRET.encode() not in written


def test_the_key_shows_in_no_error_about_the_list_of_models(endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    endpoint.models = ["a", "b"]
    with pytest.raises(PrismError) as caught:
        served_model(Endpoint(endpoint.url, None, key_env="MY_KEY"))
    assert SECRET not in everything(caught.value) + caplog.text


@pytest.mark.parametrize("url", ["http://user:hunter2@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=hunter2"])
def test_a_secret_in_the_url_is_refused_as_libraries_log_urls(store, url):
    with (
        connecting(url, store) as connect,
        pytest.raises(TeacherError, match="holds a user, password or query") as told,
    ):
        connect()
    assert "hunter2" not in f"{told.value} {told.value.hint}"


def test_a_refused_key_is_told_by_the_variables_name(endpoint, store):
    endpoint.plan["q"] = [told_by(401)]
    with connecting(endpoint.url, store) as connect:
        (failed,) = outcomes(connect(key_env="MY_KEY"), [ask("q")])
    assert "the key in MY_KEY" in str(failed)
    assert "MY_KEY" in failed.hint
    assert endpoint.asked == {"q": 1}


def test_a_reply_that_quotes_the_key_with_status_200_does_not_show_it(endpoint, store):
    endpoint.plan["q"] = [lambda question: JSONResponse({"error": {"message": f"bad key {SECRET}"}})]
    with connecting(endpoint.url, store) as connect:
        (failed,) = outcomes(connect(key_env="MY_KEY"), [ask("q")])
    assert "bad key [MY_KEY]" in str(failed)
    assert SECRET not in everything(failed)


@pytest.mark.parametrize("blanks", ["\n", "\r\n", "  "])
def test_blanks_around_a_key_are_neither_sent_nor_shown(endpoint, store, monkeypatch, blanks):
    monkeypatch.setenv("MY_KEY", f"{SECRET}{blanks}")
    endpoint.plan["q"] = [told_by(400)]
    with connecting(endpoint.url, store) as connect:
        client = connect(key_env="MY_KEY")
        (failed,) = outcomes(client, [ask("q")])
    assert endpoint.keys == [f"Bearer {SECRET}"]
    assert "bad key [MY_KEY]" in str(failed)
    assert SECRET not in everything(failed)


@pytest.mark.parametrize("key", [f"{SECRET}é", f"sk\n{SECRET}"])
def test_a_key_that_can_not_be_sent_is_refused_by_the_variables_name(endpoint, store, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    value = Endpoint(endpoint.url, None, key_env="MY_KEY")
    for make in (lambda: connect(key_env="MY_KEY"), lambda: served_model(value)):
        with connecting(endpoint.url, store) as connect, pytest.raises(TeacherError, match="MY_KEY") as caught:
            make()
        assert SECRET not in everything(caught.value)
    assert not endpoint.keys


@pytest.mark.parametrize("key", [f"{SECRET}\r\n", f'{SECRET}"\\'])
def test_a_key_is_not_shown_as_a_library_would_write_it(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    for told in (f"{key}", f"{key!r}", f"{key.encode()!r}", json.dumps(key), key.strip()):
        error = failures.explain(ValueError(f"illegal header {told}"), "http://x/v1", "m", "MY_KEY")
        assert SECRET not in str(error), told
        assert "[MY_KEY]" in str(error)
