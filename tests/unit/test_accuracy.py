"""The verifier against hand-judged answers (answers.tsv; ⏎ breaks a line, ‖ parts accepted ones) and hostile ones."""

import collections
import contextlib
import csv
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_cli.errors import PrismError
from prism_cli.rewards import math_process
from prism_cli.rewards.accuracy import is_correct
from prism_cli.rewards.choices import options_of
from prism_cli.rewards.math_process import MathProcess
from prism_cli.rewards.mathematics import PROCESS, same_mathematics
from prism_cli.rewards.quantities import read_quantity
from prism_cli.rewards.wording import plain


def table():
    with open(Path(__file__).with_name("answers.tsv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            fields = {name: text.replace("⏎", "\n") for name, text in row.items()}
            yield fields | {"accepted": fields["accepted"].split(" ‖ ")}


TABLE = list(table())
FAMILIES = sorted({row["family"] for row in TABLE})
EQUAL = (r"\sqrt{8}", r"2\sqrt{2}")
# What the filter keeps away from math-verify: a tower of powers takes minutes and gigabytes, the integral has no end.
BOMBS = ("9^{9^{9^9}}", r"\int_0^1 \sin(\sin(\sin(x^5))) dx")


def bare(text):
    return re.sub(r"\W", "", text.casefold())


# The table


@pytest.mark.parametrize("family", FAMILIES)
def test_verdicts_are_a_persons(family):
    rows = [row for row in TABLE if row["family"] == family]
    judged = [(row, is_correct(row["answer"], row["accepted"], row["question"])) for row in rows]
    assert [row for row, verdict in judged if verdict is not (row["verdict"] == "right")] == []


def test_the_table_is_large_varied_and_hard_for_string_equality():
    templates = collections.Counter(
        tuple(
            re.sub(r"\d+", "0", re.sub(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", "x", text))
            for text in (row["answer"].casefold(), *row["accepted"], row["verdict"])
        )
        for row in TABLE
    )
    assert len(TABLE) >= 750
    assert max(templates.values()) <= 5
    assert {row["verdict"] for row in TABLE} == {"right", "wrong"}
    right, wrong = ([row for row in TABLE if row["verdict"] == verdict] for verdict in ("right", "wrong"))
    assert sum(bare(row["answer"]) not in map(bare, row["accepted"]) for row in right) >= 320
    assert sum(bare(row["answer"]) in map(bare, row["accepted"]) for row in wrong) >= 55
    contained = (any(a.casefold() in row["answer"].casefold() for a in row["accepted"]) for row in wrong)
    assert sum(contained) >= 150


# Any text at all

TEXTS = st.text(max_size=40) | st.text("0123456789.,/%$()[]{}\\^-+=<>ABCDabx √π¹②½或是 \n:;'", max_size=30)


@settings(max_examples=150, deadline=None)
@given(TEXTS.filter(str.strip), TEXTS)
def test_an_accepted_answer_is_right_whatever_it_is(text, question):
    if (
        plain(text)
        and question != text
        and re.findall(r"\w+", text.casefold()) != re.findall(r"\w+", question.casefold())
    ):
        assert is_correct(text, [text], question)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.sampled_from(["", " ", "\n", "\t ", "\u3000"]))
def test_blanks_around_change_nothing_and_nothing_raises(answer, reference, question, blanks):
    verdict = is_correct(answer, [reference], question)
    assert is_correct(blanks + answer + blanks, [blanks + reference + blanks], question) is verdict


@given(st.text(" \t\n\u3000\u200b", max_size=5), TEXTS, TEXTS)
def test_an_empty_answer_is_never_right(blanks, reference, question):
    assert not is_correct(blanks, [reference, blanks, ""], question)


# Never right


def test_any_of_several_accepted_answers_will_do():
    assert is_correct("sofa", ["couch", "sofa"])
    assert not is_correct("couch, sofa", ["couch", "sofa"])
    assert not is_correct("sofa", [])


def test_an_answer_of_1024_characters_is_never_right():
    assert is_correct("x" * 1023, ["x" * 1023])
    assert not is_correct("x" * 1024, ["x" * 1024])
    assert not is_correct("5" + " " * 1023, ["5"])


# Reading


def test_the_options_a_question_lists_last_are_read_in_order():
    assert options_of("How heavy is it?\n(A) 5 kg\n(B) 5 lb") == {"A": "5 kg", "B": "5 lb"}
    assert options_of("Is A. large? A. yes B. no") == {"A": "yes", "B": "no"}
    assert options_of("In triangle B. C. find A. now") == {}


def test_quantities_keep_value_and_unit():
    assert read_quantity("2 km")[::2] == (2.0, 1000.0)
    assert read_quantity("2 h 15 min")[::2] == (2.25, 3600.0)
    assert read_quantity("five cats").unit == (("cat", 1),)
    assert read_quantity("5 or 6") is None


# Mathematics in bounded time


@pytest.mark.parametrize(
    "bomb",
    [*BOMBS, "9^9^9", "2^{99999999}", "(10000!)!", "(" * 500, "{" * 900, "\\frac" * 200, "1" * 1000, "a.b" * 300],
)
def test_hostile_answers_are_turned_away_at_once(bomb):
    timed_out, started = PROCESS.timed_out, time.process_time()
    assert not is_correct(bomb, ["\\sqrt{2}"])
    if bomb not in BOMBS:
        assert PROCESS.timed_out == timed_out
    assert time.process_time() - started < 0.5


def test_mathematics_ends_in_time_and_the_next_answer_is_judged(caplog):
    process = MathProcess(limit=0.2)
    assert process.same(*EQUAL)
    with caplog.at_level(logging.WARNING):
        assert [process.same(bomb, "1") for bomb in BOMBS] == [False, False]
    # Unbounded, either takes minutes at least and would not be counted here.
    assert process.timed_out == 2
    assert len([record for record in caplog.records if "counted as wrong" in record.message]) == 1

    verdicts = []
    threads = [threading.Thread(target=lambda pair=pair: verdicts.append(process.same(*pair))) for pair in [EQUAL] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 3
    process.close()


def judge_in_worker(results):
    process = MathProcess(limit=0.2)
    results.put([process.same(BOMBS[0], "1"), is_correct(EQUAL[0], [EQUAL[1]]), process.timed_out])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_mathematics_works_in_a_worker_process(method):
    assert is_correct(EQUAL[0], [EQUAL[1]])  # the parent's process runs already, which a fork inherits
    context = multiprocessing.get_context(method)
    results = context.Queue()
    worker = context.Process(target=judge_in_worker, args=(results,), daemon=True)
    worker.start()
    assert results.get(timeout=120) == [False, True, 1]
    worker.join()
    assert is_correct(r"\sqrt{50}", [r"5\sqrt{2}"])


def test_a_process_that_died_while_idle_is_replaced():
    process = MathProcess()
    assert process.same("x+1", "1+x")
    process._worker.process.kill()
    process._worker.process.wait()
    assert process.same("x+1", "1+x")
    assert process.timed_out == 0
    process.close()


def test_an_interrupted_comparison_leaves_no_verdict_for_the_next():
    process = MathProcess(limit=60)
    assert process.same("x+1", "1+x")
    pid = process._worker.process.pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        process.same(*EQUAL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    assert not process.same("1", "2")
    process.close()


def test_a_process_that_can_not_start_says_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(math_process, "_WORKER", tmp_path / "broken.py")
    with pytest.raises(PrismError, match="does not start") as raised:
        MathProcess().same("x+1", "1+x")
    assert "math_verify" in raised.value.hint


def test_what_is_no_expression_is_not_asked():
    assert same_mathematics("a long text", "2") is None
    assert same_mathematics("x" * 200, "2") is None
