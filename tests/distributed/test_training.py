"""SFT, RL and align on two real processes give what one process gives: the same batch, cut up otherwise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prism_cli.runs.references import resolve_model
from prism_cli.worlds import world
from tests.distributed.worker import _text

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
# Measured: 7e-7 at most, on weights up to 1.7; a step moves them by 1e-3 to 1e-2.
TOLERANCE = 1e-5
TINY = {
    "model": {"type": "tiny", "hidden": 32, "layers": 1, "vision_hidden": 32, "vision_layers": 1},
    "response.instruction": None,
    "image": {"min_pixels": 2304, "max_pixels": 2304},
    "eval_data": None,
    "log_every": 1,
    "max_steps": 3,
    "checkpoint.every": 2,
    "checkpoint.evaluate_every": None,
    # What is nearly no gradient must not become a whole step of random sign.
    "trainer.adam_epsilon": 1e-4,
}
# Three groups of four on two processes: the second group lies across them.
ROLLOUTS = {**TINY, "prompts_per_step": 3, "rollouts": 4, "max_response_tokens": 48, "rollouts_every": None}


def started(folder, processes, jobs, program="tests.distributed.worker"):
    """Runs jobs one after the other in so many processes; gives the exit code and what they printed."""
    paths = []
    for n, (stage, name, recipe) in enumerate(jobs):
        path = folder / f"{n}-{name}.json"
        path.write_text(json.dumps({"stage": stage, "name": name, "recipe": recipe}))
        paths.append(str(path))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [*(launcher if processes > 1 else []), "-m", program, str(folder), *paths]
    found_in = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": found_in}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def write_rows(folder):
    """Rows with a teacher's and a student's text, and demonstrations of which every other pair has no picture."""
    rows, mixed = [], []
    for i, example in enumerate(world("shapes").examples("train", 16, 5)):
        example.image.save(folder / f"{i}.png")
        teacher, student = (
            next(text for k in range(50) if (text := _text(f"{who} {i} {k}")).endswith("</answer>"))
            for who in ("teacher", "student")
        )
        row = {"id": example.id, "question": example.question, "image": f"{i}.png", "answer": example.answer}
        rows.append({**row, "teacher_response": teacher, "student_response": student})
        seen = {"image": f"{i}.png"} if i % 4 < 2 else {}
        mixed.append({"id": example.id, "question": example.question, "response": teacher, **seen})
    for name, lines in {"rows": rows, "mixed": mixed}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of finished runs, those on one process and those on two."""
    folder = tmp_path_factory.mktemp("distributed")
    write_rows(folder)
    sft = {**TINY, "data": {"path": str(folder / "mixed.jsonl")}, "trainer.gradient_checkpointing": True}
    rl = {**ROLLOUTS, "data.size": 32}
    rows = {"path": str(folder / "rows.jsonl")}
    warmup = {"data": rows, "batch_size": 4, "held_out": 4, "pairs": 12, "epochs": 1, "stop_in": None}
    # Without dropout, which each process draws for itself.
    section = {"micro_batch": 4, "learning_rate": 1e-3, "warmup": warmup, "type": "dense", "readout": "mean"}
    section |= {"dropout": 0.0, "head_std": 1.0}
    align = {**ROLLOUTS, "data": rows, "teacher": {"type": "dataset"}, "discriminator": section}
    align |= {"optimizer.learning_rate": 1e-2}

    def on_two(zero):
        return {"launch.processes": 2, "launch.zero": zero}

    one = [("sft", "sft", {**sft, "batch_size": 4})]
    one += [("rl", "rl", {**rl, "micro_batch": 4}), ("align", "align", {**align, "micro_batch": 4})]
    # With a constant rate, a run that is to be longer begins like one that ends earlier.
    steady = {**sft, "batch_size": 2, "optimizer.schedule": "constant", "max_steps": 4, **on_two(3)}
    two = [
        ("sft", "sft-ddp", {**sft, "batch_size": 2, **on_two(None)}),
        ("sft", "sft-zero3", {**sft, "batch_size": 2, **on_two(3)}),
        ("rl", "rl-zero2", {**rl, "micro_batch": 2, **on_two(2)}),
        ("align", "align-ddp", {**align, "micro_batch": 2, **on_two(None)}),
        ("align", "align-zero2", {**align, "micro_batch": 2, **on_two(2)}),
        ("align", "align-zero3", {**align, "micro_batch": 2, **on_two(3)}),
        ("sft", "straight", steady),
        ("sft", "continued", {**steady, "max_steps": 2}),
        ("sft", "continued", steady),
        ("rl", "lora", {**rl, "micro_batch": 2, "lora.rank": 4, "trainer.gradient_checkpointing": True, **on_two(3)}),
    ]
    for processes, jobs in ((1, one), (2, two)):
        done = started(folder, processes, jobs)
        assert done.returncode == 0, done.stderr[-6000:]
    return folder


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def apart(one, other):
    """The largest difference of two runs' weights."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def measured(run, name):
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("sft", "sft-ddp"),
        ("sft", "sft-zero3"),
        ("rl", "rl-zero2"),
        ("align", "align-ddp"),
        ("align", "align-zero2"),
        ("align", "align-zero3"),
    ],
)
def test_two_processes_end_where_one_does(runs, one, two):
    assert apart(runs / one, runs / two) < TOLERANCE
    for name in ("loss", "grad_norm"):
        assert measured(runs / two, name) == pytest.approx(measured(runs / one, name), abs=1e-5)


def test_the_discriminator_of_two_processes_scores_as_that_of_one(runs):
    for name in ("discriminator/loss/perception", "discriminator/accuracy/reasoning"):
        assert measured(runs / "align-zero3", name) == pytest.approx(measured(runs / "align", name), abs=1e-4)


def test_a_sharded_run_that_was_cut_ends_as_one_that_was_not(runs):
    assert apart(runs / "straight", runs / "continued") == 0


def test_a_checkpoint_is_complete_with_every_processes_states(runs):
    folder = runs / "sft-zero3" / "checkpoints" / "checkpoint-2"
    marker = json.loads((folder / "complete.json").read_text())
    assert marker.items() >= {"step": 2, "processes": 2, "zero": 3}.items()
    assert 0 < marker["save_seconds"] < 60
    assert {path.name for path in folder.glob("rng_state_*.pth")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert len(list(folder.glob("global_step2/*optim_states.pt"))) == 2


def test_a_sharded_checkpoint_is_a_plain_model_too(runs):
    from prism_cli.models import load_policy

    policy = load_policy(resolve_model(f"{runs / 'sft-zero3'}@2")[0])
    last = weights(runs / "sft-zero3")
    moved = max(
        float((last[name] - value).abs().max()) for name, value in policy.model.state_dict().items() if name in last
    )
    assert 0 < moved < 0.1


def test_adapters_trained_beside_shards_are_merged_into_a_whole_model(runs):
    assert (runs / "lora" / "adapter" / "adapter_model.safetensors").is_file()
    assert weights(runs / "lora").keys() == weights(runs / "rl").keys()
    assert all(value.numel() for value in weights(runs / "lora").values())


def test_the_manifest_says_how_it_was_launched(runs):
    manifest = json.loads((runs / "rl-zero2" / "run.json").read_text())
    assert manifest["launch"] == {"processes": 2, "nodes": 1, "zero": 2}


def test_shards_of_two_processes_are_refused_on_one(runs, tmp_path):
    from prism_cli.errors import CheckpointError
    from prism_cli.trainers.checkpoints import Shards, refuse_other_shards

    checkpoint = runs / "sft-zero3" / "checkpoints" / "checkpoint-2"
    refuse_other_shards(checkpoint, Shards(2, 3))
    with pytest.raises(CheckpointError, match="2 processes under ZeRO-3") as caught:
        refuse_other_shards(checkpoint, Shards(1, None))
    assert "launch.zero=3" in caught.value.hint
