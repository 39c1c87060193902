"""vLLM in each of two training processes: it ends with its training, and leaves the processes' own groups standing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.test_training import write_rows

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
BOTH = {"launch.processes": 2, "generation.type": "vllm"}
STEP = {"prompts_per_step": 4, "rollouts": 4, "micro_batch": 4, "data.size": 32, "eval_data": None, "log_every": 1}
STEP |= {"checkpoint.evaluate_every": None, "checkpoint.every": 100, "max_response_tokens": 32, "rollouts_every": None}
RL = {**BOTH, **STEP, "max_steps": 2}
# A policy of two steps writes nothing that a discriminator could be warmed up on.
WARMUP = {"data": {"path": "rows.jsonl"}, "pairs": 12, "held_out": 4, "batch_size": 4, "epochs": 1, "stop_in": None}
ALIGN = {**BOTH, **STEP, "max_steps": 2, "discriminator": {"micro_batch": 4, "warmup": WARMUP}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a policy in runs/sft, and pairs in rows.jsonl."""
    folder = tmp_path_factory.mktemp("processes")
    write_rows(folder)
    short = ["max_steps=2", "data.size=64", "eval_data=null", "checkpoint.evaluate_every=null"]
    done = subprocess.run([*PRISM, "sft", "tiny", *short], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


PRISM = [sys.executable, "-m", "prism_cli"]


def words(recipe):
    return [f"{key}={json.dumps(value)}" for key, value in recipe.items()]


def prism(stage, recipe, folder):
    """Starts a stage; a Popen."""
    command = [*PRISM, stage, "tiny", "--from", "runs/sft", *words(recipe)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes)


def finished(command):
    out, err = command.communicate(timeout=600)
    return command.returncode, out + err


def orphans(folder):
    """Processes that still work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_rl_ends_with_a_model_and_leaves_no_process(place):
    code, told = finished(prism("rl", {**RL, "output": "runs/rl"}, place))
    assert code == 0, told[-5000:]
    assert (place / "runs/rl/model/model.safetensors").is_file()
    assert orphans(place) == []


def test_align_ends_with_a_model_and_its_discriminator(place):
    code, told = finished(prism("align", {**ALIGN, "output": "runs/align"}, place))
    assert code == 0, told[-5000:]
    assert (place / "runs/align/model/model.safetensors").is_file()
    assert (place / "runs/align/discriminator/model.safetensors").is_file()


def test_sigterm_keeps_the_step(place):
    command = prism("rl", {**RL, "max_steps": 200, "output": "runs/ended"}, place)
    metrics = place / "runs/ended/metrics.jsonl"
    end = time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert command.poll() is None, finished(command)[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.2)
    command.send_signal(signal.SIGTERM)
    code, told = finished(command)
    assert code == 143, told[-5000:]
    (kept,) = (place / "runs/ended/checkpoints").glob("*/complete.json")
    assert json.loads(kept.read_text())["step"] == len(metrics.read_text().splitlines())
    assert orphans(place) == []


@pytest.fixture
def endpoint(place):
    """The address of the world's oracle as a server."""
    command = [sys.executable, "-u", *PRISM[1:], "teacher", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        for line in server.stdout:
            if address := re.search(r"http://\S+/v1", line):
                yield address[0]
                break
        server.terminate()


def test_a_budget_that_ends_keeps_the_last_step(place, endpoint):
    teacher = {"type": "openai", "endpoint": endpoint, "max_calls": 30, "store": "runs/poor.sqlite"}
    recipe = {**ALIGN, "max_steps": 50, "teacher": teacher, "output": "runs/poor"}
    code, told = finished(prism("align", recipe, place))
    assert code == 3, told[-5000:]
    assert "training is kept up to step" in told
    assert list((place / "runs/poor/checkpoints").glob("*/complete.json"))


def test_the_next_stage_runs_in_the_same_processes(place):
    """What a pipeline under somebody else's launcher does: two trainings with vLLM, one after the other."""
    jobs = []
    for name, source in (("first", "runs/sft"), ("second", "runs/first")):
        job = {"stage": "rl", "name": name, "recipe": {**RL, "from": source}}
        (place / f"{name}.json").write_text(json.dumps(job))
        jobs.append(str(place / f"{name}.json"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "tests.vllm.worker", "runs", *jobs]
    found_in = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": found_in}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    assert (place / "runs/second/model/model.safetensors").is_file()
