import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.faulty_endpoint import answer, endpoint_at, status

from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import DataError, TeacherError
from prism_cli.teacher.sources import ColumnSource, EndpointSource, Failed, TeacherRequest

INTERRUPTED = """
import sys, time
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.store import AnswerStore
from prism_cli.teacher.sources import EndpointSource, TeacherRequest
teacher = EndpointSource(EndpointClient(Endpoint(sys.argv[1], "m"), AnswerStore(sys.argv[2])))
try:
    teacher.answers([TeacherRequest([{"role": "user", "content": "q"}])])
except KeyboardInterrupt:
    teacher.client.close()
    print("closed")
"""


def ask(question: str, row: str = "") -> TeacherRequest:
    return TeacherRequest([{"role": "user", "content": question}], row=row)


@pytest.fixture
def teach(endpoint, tmp_path):
    teachers = []

    def teach(**settings) -> EndpointSource:
        store = AnswerStore(tmp_path / "answers.sqlite")
        budget = settings.pop("budget", None)
        teachers.append(EndpointSource(EndpointClient(endpoint_at(endpoint.url, **settings), store, budget)))
        return teachers[-1]

    yield teach
    for teacher in teachers:
        teacher.client.close()


@pytest.mark.timeout(60)
def test_prefetching_returns_at_once_and_its_answers_are_not_asked_again(endpoint, teach):
    returned = threading.Event()

    async def answer_afterwards(question):
        while not returned.is_set():
            await asyncio.sleep(0.01)
        return answer(f"answer to {question}")(question)

    endpoint.plan |= {"a": [answer_afterwards], "b": [answer_afterwards]}
    budget = Budget()
    teacher = teach(budget=budget)
    teacher.prefetch([ask("a"), ask("b")])
    returned.set()
    given = teacher.answers([ask("b"), ask("a"), ask("b")])
    assert [one.text for one in given] == ["answer to b", "answer to a", "answer to b"]
    assert endpoint.asked == {"a": 1, "b": 1}
    # Waiting for a prefetched answer is not a second look at a kept one.
    assert (budget.summary()["calls"], budget.summary()["cached"]) == (2, 0)


def test_answers_asked_for_again_come_from_the_store(endpoint, teach):
    teacher = teach()
    (first,) = teacher.answers([ask("a")])
    (again,) = teacher.answers([ask("a")])
    assert (first.cached, again.cached) == (False, True)
    assert endpoint.asked == {"a": 1}


def test_a_row_without_a_usable_answer_stands_in_its_place_as_failed(endpoint, teach):
    endpoint.plan["a"] = [answer(None, refusal="no")] * 9
    first, second, third = teach(attempts=2).answers([ask("a", "1"), ask("b", "2"), ask("a", "3")])
    assert (first, third) == (Failed("1", "refused"), Failed("3", "refused"))
    assert second.text == "answer to b"
    assert endpoint.asked == {"a": 2, "b": 1}


def test_an_endpoint_that_fails_for_good_is_told_after_the_others_are_received(endpoint, teach, tmp_path):
    endpoint.plan["b"] = [status(401)]
    endpoint.delay = 0.05
    with pytest.raises(TeacherError, match="401"):
        teach(concurrency=3).answers([ask("a", "1"), ask("b", "2"), ask("c", "3")])
    assert {row.text for row in AnswerStore(tmp_path / "answers.sqlite")} == {"answer to a", "answer to c"}


def test_a_teacher_goes_by_the_name_it_was_given(teach):
    assert (teach().name, teach(name="the school's").name) == ("m", "the school's")


@pytest.mark.timeout(120)
def test_ctrl_c_while_waiting_ends_the_process_promptly(endpoint, tmp_path):
    endpoint.delay = 60
    command = [sys.executable, "-c", INTERRUPTED, endpoint.url, str(tmp_path / "a.sqlite")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not endpoint.asked and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (out.strip(), process.returncode) == ("closed", 0)
    assert not endpoint.completed, "nobody waited for the answer"


def test_closing_leaves_no_thread(teach):
    before = threading.active_count()
    teacher = teach()
    assert threading.active_count() == before + 1
    teacher.client.close()
    assert threading.active_count() == before


def test_a_column_answers_by_row():
    teacher = ColumnSource({"1": "one", "2": "two"})
    given = teacher.answers([ask("q", "2"), ask("q", "1")])
    assert [(one.text, one.model, one.cached) for one in given] == [("two", "dataset", True), ("one", "dataset", True)]


@pytest.mark.parametrize("answers", [{}, {"7": None}, {"7": ""}])
def test_a_row_without_an_answer_is_named(answers):
    with pytest.raises(DataError, match="row 7: teacher_response is empty"):
        ColumnSource(answers).answers([ask("q", "7")])
