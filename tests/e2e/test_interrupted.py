"""Ctrl-C in the middle of a stage, then the same command again."""

import json
import os
import signal
import time

import pytest

LONG = "max_steps=40 data.size=64 batch_size=8 model.hidden=64 eval_data=null checkpoint.evaluate_every=null"
SFT = f"sft tiny {LONG} checkpoint.every=5 log_every=1"
ALIGN = (
    "align tiny max_steps=8 data.size=64 eval_data.size=4 prompts_per_step=2 rollouts=4 micro_batch=8 "
    "max_response_tokens=48 checkpoint.every=2 discriminator.warmup.pairs=32 discriminator.warmup.held_out=8"
)
EVAL = "eval tiny data.size=128 samples=2 max_response_tokens=48"


def lines(path, count):
    """Whether a file has that many lines."""
    return lambda: path.exists() and len(path.read_text().splitlines()) >= count


def interrupt(command, reached):
    """Sends Ctrl-C once something is reached; gives how the command ended, which takes less than a minute."""
    while not reached():
        assert command.running(), command.wait()
        time.sleep(0.005)
    os.kill(command.pid, signal.SIGINT)
    return command.wait()


def assert_stopped_cleanly(done, folder):
    assert done.code == 130, done
    assert done.stderr.strip().endswith("interrupted: run the same command again to continue")
    assert "Traceback" not in done.stderr
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sft(prism, tmp_path):
    command = prism.start(*SFT.split(), cwd=tmp_path)
    folder = tmp_path / "runs/sft"
    assert_stopped_cleanly(interrupt(command, lines(folder / "metrics.jsonl", 7)), folder)
    done = prism(*SFT.split(), cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "continuing from" in done.stdout
    assert steps(folder) == list(range(1, 41))


@pytest.mark.parametrize("moment", ["warm-up", "game"])
def test_align(prism, trained, tmp_path, moment):
    folder = tmp_path / "runs/align"
    order = [*ALIGN.split(), "--from", str(trained)]
    reached = (
        lines(folder / "metrics.jsonl", 3) if moment == "game" else (tmp_path / "runs/teacher_answers.sqlite").exists
    )
    assert_stopped_cleanly(interrupt(prism.start(*order, cwd=tmp_path), reached), folder)
    done = prism(*order, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert steps(folder) == list(range(1, 9))


def test_eval(prism, trained, tmp_path):
    folder = tmp_path / "runs/eval"
    order = [*EVAL.split(), str(trained)]
    command = prism.start(*order, cwd=tmp_path)
    assert_stopped_cleanly(interrupt(command, (tmp_path / "runs/teacher_answers.sqlite").exists), folder)
    done = prism(*order, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert (folder / "summary.json").exists()
