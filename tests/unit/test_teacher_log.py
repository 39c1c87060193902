"""What a store of answers shows, and what of it can be read back as data."""

import json

import pytest

from prism_cli.data.formats import detect, parse
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.requests import EndpointRequest, describe
from prism_cli.endpoint.store import AnswerStore, StoredAnswer
from prism_cli.errors import CheckpointError
from prism_cli.stages import teacher_log


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "answers.sqlite"
    kept = AnswerStore(path)
    for number, (text, finish) in enumerate([("seven", "stop"), ("no", "refusal"), ("half", "length"), ("8", "stop")]):
        messages = [{"role": "system", "content": "Teach."}, {"role": "user", "content": f"question {number}"}]
        key, description = describe(EndpointRequest(messages), Endpoint("http://h/v1", "m"))
        kept.put(StoredAnswer(key, "teacher", "m", description, text, finish, 100, 10, usd=0.25, row=f"r{number}"))
    kept.close()
    return str(path)


def test_totals_count_calls_tokens_dollars_and_what_can_not_be_used(store):
    (found,) = teacher_log.read(store, 2).totals
    assert (found.teacher, found.model, found.calls) == ("teacher", "m", 4)
    assert (found.prompt_tokens, found.completion_tokens, found.usd) == (400, 40, 1.0)
    assert teacher_log.unusable(found.finishes) == {"cut off": 1, "refused": 1}


def test_the_newest_calls_come_last(store):
    last = teacher_log.read(store, 2).last
    assert [(teacher_log.question(call), call.text) for call in last] == [("question 2", "half"), ("question 3", "8")]
    assert teacher_log.read(store, 0).last == []


def test_exported_answers_are_read_back_as_rows_and_bad_ones_are_left_out(store, tmp_path):
    assert teacher_log.export(store, str(tmp_path / "out.jsonl")) == 2
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == ["r0", "r3"]
    read = parse(detect(lines[0]), lines[0])
    assert (read.prompt[0]["content"], read.prompt[-1]["content"]) == ("Teach.", "question 0")
    assert (read.demonstration, read.id) == ("seven", lines[0]["id"])
    assert len({line["id"] for line in lines}) == 2


def test_only_answers_that_came_to_their_own_end_are_exported(tmp_path):
    kept = AnswerStore(tmp_path / "answers.sqlite")
    _, description = describe(EndpointRequest([{"role": "user", "content": "q"}]), Endpoint("http://h/v1", "m"))
    ends, cuts = ("stop", "eos", "end_turn", "stop_sequence", "STOP"), ("abort", "max_tokens", "tool_calls")
    for finish in (*ends, *cuts, "SAFETY", "overdue"):
        kept.put(StoredAnswer(finish, "teacher", "m", description, "text", finish))
    kept.close()
    assert teacher_log.export(str(kept.path), str(tmp_path / "out.jsonl")) == 5
    (found,) = teacher_log.read(str(kept.path), 2).totals
    assert teacher_log.unusable(found.finishes) == {"cut off": 3, "filtered": 1, "unanswered": 1}


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(CheckpointError, match="no store of answers"):
        teacher_log.read(str(tmp_path / "none.sqlite"), 3)
    assert list(tmp_path.iterdir()) == []


def test_an_export_into_no_folder_is_refused(store, tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        teacher_log.export(store, str(tmp_path / "none/out.jsonl"))
