"""`prism` starts two processes itself, ends them with itself, and continues: real processes, real signals."""

import json
import os
import signal
import socket
import time

import psutil
import pytest

from tests.distributed.test_training import write_rows

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SHORT = "max_steps=40 data.size=64 batch_size=4 model.hidden=64 model.layers=1"
RARE = "eval_data=null checkpoint.evaluate_every=null checkpoint.every=1000 log_every=1"
SFT = ["sft", "tiny", "launch.processes=2", *SHORT.split(), *RARE.split()]
ALIGN = [
    *("align", "tiny", "launch.processes=2", "launch.zero=3", "data.size=32", "eval_data=null", "max_steps=6"),
    *("model={type: tiny, hidden: 32, layers: 1}", "prompts_per_step=2", "rollouts=2", "micro_batch=2"),
    *("checkpoint.every=2", "discriminator.micro_batch=4", "max_response_tokens=24"),
    *("image={min_pixels: 2304, max_pixels: 2304}", "response.instruction=null"),
    # An untrained policy writes nothing that a discriminator could be warmed up on.
    "discriminator.warmup={data: {path: rows.jsonl}, pairs: 12, held_out: 4, batch_size: 4, epochs: 1, stop_in: null}",
]
SEVERAL = {"OMP_NUM_THREADS": "1"}


def wait_for(reached, command, seconds=240):
    end = time.monotonic() + seconds
    while not reached():
        assert command.running(), command.wait()
        assert time.monotonic() < end, command.output()
        time.sleep(0.02)


def steps(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def checkpoints(folder):
    return sorted(int(path.parent.name.partition("-")[2]) for path in folder.glob("checkpoints/*/complete.json"))


def started(tmp_path):
    """Processes, by rank, that were started to train here."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(tmp_path) and "RANK" in (variables := process.environ()):
                found[int(variables["RANK"])] = process
        except psutil.Error:
            continue
    return found


def alive(workers):
    return [one for one in workers.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def wait_for_end(workers, seconds=20):
    end = time.monotonic() + seconds
    while alive(workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert alive(workers) == []


@pytest.fixture
def training(prism, tmp_path):
    """A run of two processes after its third step: (command, its processes by rank, its folder)."""
    command = prism.start(*SFT, cwd=tmp_path, env=SEVERAL)
    folder = tmp_path / "runs/sft"
    wait_for(lambda: len(steps(folder)) >= 3, command)
    workers = started(tmp_path)
    assert sorted(workers) == [0, 1]
    yield command, workers, folder
    for one in alive(workers):
        one.kill()


def test_a_killed_process_is_named_and_the_same_command_finishes(prism, tmp_path):
    write_rows(tmp_path)
    command = prism.start(*ALIGN, cwd=tmp_path, env=SEVERAL)
    folder = tmp_path / "runs/align"
    wait_for(lambda: len(steps(folder)) >= 3, command)
    workers = started(tmp_path)
    workers[1].send_signal(signal.SIGKILL)
    done = command.wait()
    assert done.code == 1
    assert "error: process 1 of 2 was killed (signal 9, SIGKILL)" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    assert alive(workers) == []
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    (kept,) = checkpoints(folder)[-1:]

    done = prism(*ALIGN, cwd=tmp_path, env=SEVERAL)
    assert done.code == 0, done.stderr
    assert f"checkpoints/checkpoint-{kept}" in done.stdout
    assert steps(folder) == [1, 2, 3, 4, 5, 6]
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["command"] == ["prism", *ALIGN]
    assert (folder / "report.html").is_file()
    assert (folder / "discriminator/model.safetensors").is_file()


def test_sigterm_keeps_the_step(training):
    command, workers, folder = training
    os.kill(command.pid, signal.SIGTERM)
    done = command.wait()
    assert done.code == 143, done
    assert "Traceback" not in done.stderr
    assert alive(workers) == []
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    (kept,) = checkpoints(folder)
    assert kept == steps(folder)[-1] < 40


def test_a_second_ctrl_c_ends_all_at_once(training):
    command, workers, _ = training
    workers[1].send_signal(signal.SIGSTOP)  # no step ends from here on
    os.kill(command.pid, signal.SIGINT)
    time.sleep(1)
    assert len(alive(workers)) == 2
    os.kill(command.pid, signal.SIGINT)
    done = command.wait()
    assert done.code == 130, done
    assert "Traceback" not in done.stderr
    wait_for_end(workers)


def test_a_killed_launcher_leaves_no_process(training):
    command, workers, _ = training
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    wait_for_end(workers)


def test_two_nodes_train_as_one_and_the_first_tells_how_it_went(prism, tmp_path):
    """Two launchers with a process each stand for two nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    order = [word.replace("processes=2", "nodes=2").replace("max_steps=40", "max_steps=4") for word in SFT]
    where = SEVERAL | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [prism.start(*order, cwd=tmp_path, env=where | {"NODE_RANK": str(rank)}) for rank in range(2)]
    first, second = (node.wait() for node in nodes)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    assert "finished" in first.stdout
    assert "finished" not in second.stdout
    assert steps(tmp_path / "runs/sft") == [1, 2, 3, 4]


def test_what_a_pipelines_process_finds_wrong_is_told_once_with_its_exit_code(prism, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "what is at b2 ?", "response": "' + "red " * 900 + '"}\n')
    (tmp_path / "pipeline.yaml").write_text("name: road\nsteps: [{stage: sft, recipe: sft.yaml}]\n")
    recipe = "model: {type: tiny}\ndata: {path: rows.jsonl}\nmax_tokens: 128\nlaunch: {processes: 2}\n"
    (tmp_path / "sft.yaml").write_text(recipe)
    done = prism("run", "pipeline.yaml", cwd=tmp_path, env=SEVERAL)
    assert done.code == 1, done
    assert done.stderr.count("error:") == 1
    assert "max_tokens" in done.stderr
    assert "Traceback" not in done.stderr
