import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from prism_cli.endpoint.store import AnswerStore, StoredAnswer
from prism_cli.errors import CheckpointError

WRITER = """
import sys
from prism_cli.endpoint.store import AnswerStore, StoredAnswer
print("ready", flush=True)
sys.stdin.readline()
store = AnswerStore(sys.argv[1])
for i in range(40):
    store.put(StoredAnswer(f"{sys.argv[2]}-{i}", "m", "m", "{}", "text"))
    store.put(StoredAnswer("shared", "m", "m", "{}", f"{sys.argv[2]} {i}"))
"""
KILLED_WRITER = """
import os, signal, sys
from prism_cli.endpoint.store import AnswerStore, StoredAnswer
store = AnswerStore(sys.argv[1])
for i in range(3):
    store.put(StoredAnswer(str(i), "m", "m", "{}", f"text {i}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def stored(key: str, text: str = "text", **rest) -> StoredAnswer:
    return StoredAnswer(key, **{"teacher": "t", "model": "m", "request": "{}", "text": text, **rest})


def processes(code, path, names):
    """Runs the code once a name, all at the same moment; gives what each printed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, "-c", code, path, name], **pipes) for name in names]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * len(running)
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    return printed


def test_an_answer_comes_back_as_it_was_put(tmp_path):
    store = AnswerStore(tmp_path / "new folder" / "answers.sqlite")
    given = StoredAnswer(
        "k",
        "the school's",
        "m",
        '{"sample": 0}',
        "Straße, 3 ≥ 2",
        "length",
        7,
        None,
        0.25,
        "http://x/v1",
        "m-1",
        "7",
        1.5,
        "runs/align 2026",
    )
    put = store.put(given)
    assert store.answers("k") == [put]
    assert put._replace(attempt=0, created=0.0) == given
    assert (put.attempt, put.created > 1.7e9) == (1, True)
    assert store.answers("other") == []


def test_every_answer_under_a_key_is_kept_as_the_next_attempt(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    store.put(stored("k", "", finish="empty"))
    store.put(stored("other"))
    store.put(stored("k", "second"))
    assert [(kept.attempt, kept.text, kept.finish) for kept in store.answers("k")] == [
        (1, "", "empty"),
        (2, "second", "stop"),
    ]
    assert store.count() == 3


def test_answers_are_read_in_the_order_they_came_while_others_write(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    for key in "cab":
        store.put(stored(key, key.upper()))
    seen = []
    for row in store:
        seen.append(row.text)
        store.put(stored(f"late {row.key}", "late"))
    assert seen == ["C", "A", "B"]
    assert store.count() == 6


def test_totals_are_told_apart_by_teacher_and_model(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    store.put(stored("a", prompt_tokens=100, completion_tokens=10, usd=0.5))
    store.put(stored("b", prompt_tokens=300, completion_tokens=None, usd=None, finish="length"))
    store.put(stored("c", teacher="other"))
    mine, other = store.summary()
    assert (mine.teacher, mine.model, mine.calls, mine.finishes) == ("t", "m", 2, {"length": 1, "stop": 1})
    assert (mine.prompt_tokens, mine.completion_tokens, mine.usd) == (400, 10, 0.5)
    assert (mine.mean_prompt_tokens, mine.mean_completion_tokens) == (200, 10)
    assert mine.first <= mine.last
    assert (other.teacher, other.calls, other.usd, other.mean_prompt_tokens) == ("other", 1, None, None)


def test_what_a_run_has_spent_is_told_apart_from_other_runs(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    store.put(stored("a", run="one", prompt_tokens=100, completion_tokens=10, usd=0.5))
    store.put(stored("b", run="one", prompt_tokens=50, completion_tokens=None, usd=None))
    store.put(stored("c", run="one", finish="overdue", usd=0.25))
    store.put(stored("d", run="two", usd=8.0))
    assert store.spent("one") == {"calls": 3, "prompt_tokens": 150, "completion_tokens": 10, "usd": 0.75}
    assert store.spent("three") == {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0}
    assert store.answers("c") == [], "a call that was not waited for has no answer"


def test_a_store_of_a_later_version_is_left_alone(tmp_path):
    path = tmp_path / "a.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(CheckpointError, match="schema 9"):
        AnswerStore(path)


# Accidents -----------------------------------------------------------------------------------------------------------


def test_a_killed_process_loses_no_answer_it_has_put(tmp_path):
    path = tmp_path / "a.sqlite"
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [row.text for row in AnswerStore(path)] == ["text 0", "text 1", "text 2"]


def test_several_processes_open_and_write_one_new_store_together(tmp_path):
    path = tmp_path / "a.sqlite"
    processes(WRITER, path, "abcd")
    store = AnswerStore(path)
    assert store.count() == 320
    # What two processes were answered to one question at the same time is kept twice, and numbered.
    assert [kept.attempt for kept in store.answers("shared")] == list(range(1, 161))


def test_several_threads_write_one_store(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: store.put(stored(str(i))), range(100)))
    assert store.count() == 100


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough to look at" * 40, None])
def test_a_file_that_is_no_store_is_named(tmp_path, content):
    path = tmp_path / "a.sqlite"
    if content:
        path.write_bytes(content)
    else:
        sqlite3.connect(path).execute("CREATE TABLE calls (other TEXT)").connection.close()
    with pytest.raises(CheckpointError, match=r"a\.sqlite"):
        AnswerStore(path)


def test_a_store_damaged_midway_is_named(tmp_path):
    path = tmp_path / "a.sqlite"
    store = AnswerStore(path)
    for i in range(300):
        store.put(stored(str(i), "x" * 500))
    store.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 60000)
    with pytest.raises(CheckpointError, match=r"a\.sqlite.*damaged"):
        list(AnswerStore(path))


def test_when_the_disk_is_full_everybody_who_waits_hears_of_it(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    store._writer.execute("PRAGMA max_page_count = 20")

    def put(i):
        try:
            return store.put(stored(str(i), "x" * 3000))
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(put, range(100)))
    failed = [error for error in ended if isinstance(error, CheckpointError)]
    assert "full" in str(failed[0])
    # What is not there was not said to be there.
    assert {kept.key for kept in store} == {kept.key for kept in ended if isinstance(kept, StoredAnswer)} != set()


@pytest.mark.parametrize("poison", [{"text": "half a \ud83d"}, {"prompt_tokens": 2**63}])
def test_an_answer_that_can_not_be_written_takes_no_other_with_it(tmp_path, poison):
    store = AnswerStore(tmp_path / "a.sqlite")
    given = [stored(str(i)) for i in range(8)]
    given[3] = stored("poison", **{"text": "text", **poison})
    with store._writing, ThreadPoolExecutor(8) as threads:
        # All wait for the disk, and so are written together.
        puts = [threads.submit(store.put, answer) for answer in given]
        while len(store._to_write) < 8:
            time.sleep(0.01)
        store._writing.release()
        ended = [put.exception(timeout=30) for put in puts]
        store._writing.acquire()
    assert [type(error) for error in ended] == [type(None)] * 3 + [CheckpointError] + [type(None)] * 4
    assert "can't be kept" in str(ended[3])
    assert store.count() == 7


# Disks ---------------------------------------------------------------------------------------------------------------


def journal(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]


@pytest.mark.parametrize(("kind", "mode"), [("ext4", "wal"), ("lustre", "delete"), ("fuse.sshfs", "delete")])
def test_only_a_disk_of_this_machine_alone_gets_a_write_ahead_log(tmp_path, monkeypatch, kind, mode):
    monkeypatch.setattr("prism_cli.endpoint.store.file_system", lambda path: kind)
    store = AnswerStore(tmp_path / "answers.sqlite")
    assert store.put(stored("a")).attempt == 1
    assert [answer.text for answer in store.answers("a")] == ["text"]
    assert journal(tmp_path / "answers.sqlite") == mode
    store.close()


def test_a_store_written_elsewhere_is_brought_to_a_shared_disks_journal(tmp_path, monkeypatch):
    AnswerStore(tmp_path / "answers.sqlite").close()
    assert journal(tmp_path / "answers.sqlite") == "wal"
    monkeypatch.setattr("prism_cli.endpoint.store.file_system", lambda path: "nfs4")
    AnswerStore(tmp_path / "answers.sqlite").close()
    assert journal(tmp_path / "answers.sqlite") == "delete"
