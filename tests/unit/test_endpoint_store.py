import json
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import CheckpointError

WRITER = """
import sys
from prism_cli.endpoint.store import AnswerStore
print("ready", flush=True)
sys.stdin.readline()
store = AnswerStore(sys.argv[1])
for i in range(40):
    store.put(f"{sys.argv[2]}-{i}", "m", "{}", "text")
"""
KILLED_WRITER = """
import os, signal, sys
from prism_cli.endpoint.store import AnswerStore
store = AnswerStore(sys.argv[1])
for i in range(3):
    store.put(str(i), "m", "{}", f"text {i}")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_answer_comes_back_as_it_was_put(tmp_path):
    store = AnswerStore(tmp_path / "new folder" / "answers.sqlite")
    store.put("k", "m", '{"sample": 0}', "Straße, 3 ≥ 2", 7, None)
    row = store.get("k")
    assert (row.model, row.request, row.text) == ("m", '{"sample": 0}', "Straße, 3 ≥ 2")
    assert (row.prompt_tokens, row.completion_tokens) == (7, None)
    assert store.get("other") is None


def test_the_first_answer_under_a_key_stays(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    store.put("k", "m", "{}", "first")
    store.put("k", "m", "{}", "second")
    assert store.get("k").text == "first"
    assert store.count() == 1


def test_answers_are_read_in_the_order_they_came_while_others_write(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    for key in "cab":
        store.put(key, "m", json.dumps({"key": key}), key.upper())
    seen = []
    for row in store:
        seen.append(row.text)
        store.put(f"late {row.key}", "m", "{}", "late")
    assert seen == ["C", "A", "B"]
    assert store.count() == 6


def test_a_killed_process_loses_no_answer_it_has_put(tmp_path):
    path = tmp_path / "a.sqlite"
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [row.text for row in AnswerStore(path)] == ["text 0", "text 1", "text 2"]


def test_several_processes_open_and_write_one_new_store_together(tmp_path):
    path = tmp_path / "a.sqlite"
    command = [sys.executable, "-c", WRITER, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, name], **pipes) for name in "abcd"]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 4
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [(writer.communicate(timeout=60), writer.returncode)[1] for writer in writers] == [0] * 4
    assert AnswerStore(path).count() == 160


def test_several_threads_write_one_store(tmp_path):
    store = AnswerStore(tmp_path / "a.sqlite")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: store.put(str(i), "m", "{}", "text"), range(100)))
    assert store.count() == 100


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough to look at" * 40, None])
def test_a_file_that_is_no_store_is_named(tmp_path, content):
    path = tmp_path / "a.sqlite"
    if content:
        path.write_bytes(content)
    else:
        sqlite3.connect(path).execute("CREATE TABLE answers (other TEXT)").connection.close()
    with pytest.raises(CheckpointError, match=r"a\.sqlite"):
        AnswerStore(path)


def test_a_store_damaged_midway_is_named(tmp_path):
    path = tmp_path / "a.sqlite"
    store = AnswerStore(path)
    for i in range(300):
        store.put(str(i), "m", "{}", "x" * 500)
    store.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 60000)
    with pytest.raises(CheckpointError, match=r"a\.sqlite.*damaged"):
        list(AnswerStore(path))
