"""A stage's teacher: what is kept, what it fails on, what is counted, and when a stage stops."""

import json
import socket
import time

import pytest
from tests.faulty_endpoint import FaultyEndpoint, answer

from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, resolve_teacher
from prism_cli.data.rows import dataset, row, rows_by_id
from prism_cli.endpoint import pace
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import BudgetError, DataError, TeacherError
from prism_cli.recipes.identity import differences
from prism_cli.recipes.teachers import OpenAITeacher
from prism_cli.responses import Grammar, Part, ResponseSettings
from prism_cli.runs.folder import open_run

# One part without tags: any text is well-formed.
GRAMMAR = Grammar({"whole": Part((), 1.0)}, None)
ROWS = dataset(row(id, f"question {id}", []) for id in "abcd")
MANY = dataset(row(f"r{i}", f"question {i}", []) for i in range(40))


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
    chosen = {"model": "m", "attempts": 1, **settings}
    return OpenAITeacher(endpoint=url, store=str(run.folder / "answers.sqlite"), **chosen)


def ids(rows):
    return [{"id": id} for id in rows]


def opened(section, run, data=ROWS, grammar=GRAMMAR):
    return open_teacher(resolve_teacher(section), run, TeacherQuestions((data,), ResponseSettings(grammar, None)))


def ask(run, url, rows, data=ROWS, grammar=GRAMMAR, **settings):
    with opened(section(run, url, **settings), run, data, grammar) as teacher:
        return teacher.answers(ids(rows))


def usage(run):
    return json.loads((run.folder / "teacher.json").read_text())


def test_answers_that_are_kept_need_no_endpoint(run, nobody):
    with FaultyEndpoint() as endpoint:
        given = ask(run, endpoint.url, "ab")
    assert ask(run, nobody, "ba") == given[::-1] == ["answer to question b", "answer to question a"]


@pytest.mark.timeout(60)
def test_without_kept_answers_a_dead_endpoint_is_told_whatever_the_patience(run, nobody, monkeypatch):
    monkeypatch.setattr(pace, "PATIENCE", 3600.0)
    with pytest.raises(TeacherError, match=r"127\.0\.0\.1"):
        ask(run, nobody, "a")


def test_an_endpoint_without_a_list_of_models_is_fine_when_the_model_is_named(run, endpoint):
    endpoint.models = []
    assert ask(run, endpoint.url, "a") == ["answer to question a"]
    with pytest.raises(TeacherError, match="serves 0 models"):
        ask(run, endpoint.url, "a", model=None)


def test_usage_is_on_disk_after_each_batch_and_counted_on_by_the_next_start(run, endpoint):
    with opened(section(run, endpoint.url), run, ROWS) as teacher:
        teacher.answers(ids("ab"))
        assert usage(run)["calls"] == 2, "a kill from here on must not forget them"
    ask(run, endpoint.url, "bc")
    # a and b, then c; b was kept. Each answer of this endpoint is 10 + 5 tokens.
    assert usage(run) == {"calls": 3, "cached": 1, "prompt_tokens": 30, "completion_tokens": 15, "usd": None}


def test_two_rows_of_one_id_are_told_apart_or_refused():
    assert rows_by_id(ROWS, dataset([row("a", "question a", [])]))("a")["prompt"][0]["content"] == "question a"
    with pytest.raises(DataError, match="two rows have the id a"):
        rows_by_id(ROWS, dataset([row("a", "another question", [])]))


def test_several_samples_of_a_question_are_several_calls(run, endpoint):
    with opened(section(run, endpoint.url), run, ROWS) as teacher:
        assert [teacher.answers(ids("a"), sample) for sample in (0, 1, 0)] == [["answer to question a"]] * 3
    assert endpoint.asked == {"question a": 2}


def test_more_rows_than_are_under_way_at_a_time_come_in_order(run, endpoint, monkeypatch):
    monkeypatch.setattr("prism_cli.teacher.answers.WINDOW", 6)
    monkeypatch.setattr("prism_cli.teacher.answers.CHUNK", 4)
    done = []
    with opened(section(run, endpoint.url), run, MANY) as teacher:
        given = teacher.answers(ids(MANY["id"]), on_progress=done.append)
    assert given == [f"answer to question {i}" for i in range(40)]
    assert done == list(range(4, 41, 4))
    assert set(endpoint.asked.values()) == {1}


# Failures ------------------------------------------------------------------------------------------------------------


def test_a_row_the_teacher_fails_on_has_no_answer_and_is_counted(run, endpoint, capsys):
    endpoint.plan["question b"] = [answer(None, refusal="no")]
    with opened(section(run, endpoint.url, max_failed=0.3), run, ROWS) as teacher:
        assert teacher.teachable(ids("ab")) == [True, False]
        texts = ["answer to question a", None, *(f"answer to question {i}" for i in "cd")]
        assert teacher.answers(ids("abcd")) == texts
        assert teacher.failures == {"refused": 1}
        assert (teacher.reason("a"), teacher.reason("b")) == (None, "refused")
    assert "teacher: 3 answers, 0 from the store, 1 rows failed (1 refused)" in capsys.readouterr().out


def test_a_malformed_answer_is_asked_again_until_its_attempts_are_used_up(run, endpoint):
    tagged = Grammar({"reasoning": Part(("think", "answer"), 1.0)})
    endpoint.plan["question a"] = [answer("7"), answer("<think> 3 + 4 </think> <answer> 7 </answer>")]
    endpoint.plan["question b"] = [answer("7"), answer("8")]
    given = ask(run, endpoint.url, "ab", grammar=tagged, attempts=2, max_failed=0.5)
    assert given == ["<think> 3 + 4 </think> <answer> 7 </answer>", None]
    assert endpoint.asked == {"question a": 2, "question b": 2}


def test_too_many_failures_end_the_stage_with_reasons_and_rows(run, endpoint):
    endpoint.plan["question b"] = [answer(None, refusal="no")]
    endpoint.plan["question c"] = [answer("half", finish_reason="length")]
    with pytest.raises(TeacherError) as caught:
        ask(run, endpoint.url, "abcd", max_failed=0.4)
    assert "failed on 2 of 4 rows (1 refused, 1 cut off)" in str(caught.value)
    assert "b (refused), c (cut off)" in str(caught.value)
    assert "teacher.max_failed" in caught.value.hint


def test_chance_among_the_first_rows_ends_nothing_but_a_clear_excess_does(run, endpoint):
    # Of 32 rows 5 % are 1.6, and three standard deviations more are 5.3: four failures may still come to 5 % of all.
    refused = [0, 1, 2, 3, *range(32, 36)]
    for i in refused:
        endpoint.plan[f"question {i}"] = [answer(None, refusal="no")]
    done = []

    def stage():
        with opened(section(run, endpoint.url, max_failed=0.05), run, MANY) as teacher:
            teacher.answers(ids(MANY["id"]), on_progress=done.append)
            pytest.fail("a fifth of the rows failed")

    with pytest.raises(TeacherError, match="8 of 40 rows"):
        stage()
    assert done[-1] == 32


def test_teachable_rows_are_not_asked_for_again(run, endpoint, capsys):
    with opened(section(run, endpoint.url), run, ROWS) as teacher:
        teacher.teachable(ids("abc"))
        teacher.answers(ids("abc"))
        teacher.prefetch(ids("d"))
        teacher.answers(ids("d"))
    assert set(endpoint.asked.values()) == {1}
    assert "teacher: 4 answers, 0 from the store" in capsys.readouterr().out


# Caps ----------------------------------------------------------------------------------------------------------------


def test_a_cap_on_calls_holds_over_starts_and_raising_it_continues(run, endpoint):
    ask(run, endpoint.url, "ab", max_calls=3)
    with pytest.raises(BudgetError) as caught:
        ask(run, endpoint.url, "abcd", max_calls=3)
    assert caught.value.exit_code == 3
    assert len(ask(run, endpoint.url, "abcd", max_calls=4)) == 4
    assert sum(endpoint.asked.values()) == 4


def test_a_cap_on_dollars_holds_and_what_was_spent_is_told(run, endpoint, capsys):
    # 10 + 5 tokens at $10,000 and $20,000 a million are $0.10 + $0.10; 26 + 5 at most are $0.36.
    price = {"price": {"prompt": 1e4, "completion": 2e4}, "max_tokens": 5}
    with pytest.raises(BudgetError):
        ask(run, endpoint.url, "abcd", max_usd=0.6, concurrency=1, **price)
    assert usage(run)["usd"] == pytest.approx(0.4)
    assert sum(endpoint.asked.values()) == 2
    assert len(ask(run, endpoint.url, "abcd", max_usd=1.0, concurrency=1, **price)) == 4
    assert "teacher: 4 answers, 2 from the store, $0.80" in capsys.readouterr().out


def test_a_cap_holds_over_a_kill_that_left_the_summary_behind(run, endpoint):
    """A kill comes between two writes of teacher.json, and many calls ahead of what it counts."""
    with opened(section(run, endpoint.url), run, ROWS) as teacher:
        teacher.answers(ids("ab"))
    (run.folder / "teacher.json").write_text('{"calls": 0, "cached": 0, "usd": null}')
    with pytest.raises(BudgetError, match="2 calls"):
        ask(run, endpoint.url, "c", max_calls=2)
    assert usage(run) == {"calls": 2, "cached": 0, "prompt_tokens": 20, "completion_tokens": 10, "usd": None}
    assert endpoint.asked.total() == 2


def test_a_run_that_starts_over_has_spent_nothing(run, endpoint, tmp_path):
    shared = OpenAITeacher(endpoint=endpoint.url, model="m", store=str(tmp_path / "shared.sqlite"), max_calls=2)
    with opened(shared, run, ROWS) as teacher:
        teacher.answers(ids("ab"))
    anew = open_run(run.folder, "align", {}, "", differences, fresh=True)
    with opened(shared, anew, ROWS) as teacher:
        teacher.answers(ids("abcd"))
    assert (usage(anew)["calls"], usage(anew)["cached"]) == (2, 2)


def test_calls_whose_answers_are_in_another_store_still_count(run, endpoint):
    (run.folder / "teacher.json").write_text('{"calls": 3, "cached": 7, "usd": null}')
    ask(run, endpoint.url, "a", max_calls=4)
    assert (usage(run)["calls"], usage(run)["cached"]) == (4, 7)
    with pytest.raises(BudgetError):
        ask(run, endpoint.url, "b", max_calls=4)


@pytest.mark.parametrize(("ends_with", "kept"), [(ValueError, 4), (None, 4), (KeyboardInterrupt, 0)])
def test_what_is_under_way_when_a_stage_ends_is_kept_unless_someone_waits_at_the_keyboard(
    run, endpoint, ends_with, kept
):
    endpoint.delay = 1.0

    def stage():
        with opened(section(run, endpoint.url), run, ROWS) as teacher:
            teacher.prefetch(ids("abcd"))
            while endpoint.asked.total() < 4:
                time.sleep(0.01)
            if ends_with is not None:
                raise ends_with

    if ends_with is None:
        stage()
    else:
        with pytest.raises(ends_with):
            stage()
    assert usage(run)["calls"] == kept
    assert AnswerStore(run.folder / "answers.sqlite").count() == kept
