"""A stage's teacher: an endpoint that is down, answers that are kept, and the count of what was asked."""

import json
import socket
import time

import pytest
from tests.faulty_endpoint import FaultyEndpoint

from prism_cli.data.rows import dataset, row
from prism_cli.errors import DataError, TeacherError
from prism_cli.recipes.identity import differences
from prism_cli.recipes.sections import ResponseSection
from prism_cli.recipes.teachers import OpenAITeacher
from prism_cli.runs import open_run
from prism_cli.stages.grammar import grammar_of
from prism_cli.stages.teaching import TeacherDesk, teaching
from prism_cli.teacher.teachers import ColumnTeacher

GRAMMAR = grammar_of(ResponseSection())
ROWS = dataset(row(id, f"question {id}", []) for id in "abcd")


@pytest.fixture
def run(tmp_path):
    return open_run(tmp_path / "run", "align", {}, "", differences)


@pytest.fixture
def nobody():
    """The URL of a port at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


def section(run, url, **settings):
    return OpenAITeacher(endpoint=url, store=str(run.folder / "answers.sqlite"), **{"model": "m", **settings})


def ask(run, url, ids, **settings):
    with teaching(section(run, url, **settings), GRAMMAR, run, ROWS) as desk:
        return desk.answers([{"id": id} for id in ids])


def usage(run):
    return json.loads((run.folder / "teacher.json").read_text())


def test_answers_that_are_kept_need_no_endpoint(run, nobody):
    with FaultyEndpoint() as endpoint:
        given = ask(run, endpoint.url, "ab")
    assert ask(run, nobody, "ba") == given[::-1] == ["answer to question b", "answer to question a"]


def test_without_kept_answers_a_dead_endpoint_is_told_in_seconds(run, nobody):
    started = time.monotonic()
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1"):
        ask(run, nobody, "a")
    assert time.monotonic() - started < 10


def test_an_endpoint_without_a_list_of_models_is_fine_when_the_model_is_named(run):
    with FaultyEndpoint() as endpoint:
        endpoint.models = []
        assert ask(run, endpoint.url, "a") == ["answer to question a"]
        with pytest.raises(TeacherError, match="serves 0 models"):
            ask(run, endpoint.url, "a", model=None)


def test_usage_is_on_disk_after_each_batch_and_counted_on_by_the_next_start(run):
    with FaultyEndpoint() as endpoint:
        with teaching(section(run, endpoint.url), GRAMMAR, run, ROWS) as desk:
            desk.answers([{"id": "a"}, {"id": "b"}])
            assert usage(run)["calls"] == 2, "a kill from here on must not forget them"
        ask(run, endpoint.url, "bc")
    # a and b, then c; b was kept. Each answer of this endpoint is 10 + 5 tokens.
    assert usage(run) == {"calls": 3, "cached": 1, "prompt_tokens": 30, "completion_tokens": 15, "usd": None}


def test_two_rows_of_one_id_are_told_apart_or_refused():
    teacher = ColumnTeacher({})
    TeacherDesk(teacher, ROWS, dataset([row("a", "question a", [])]))
    with pytest.raises(DataError, match="two rows have the id a"):
        TeacherDesk(teacher, ROWS, dataset([row("a", "another question", [])]))
