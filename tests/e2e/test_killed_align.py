"""A killed `prism align`, run again, ends exactly where one that was never killed ends.

Each chain kills the run, starts it again, kills it again, …; whatever the last start then finishes is compared with a
reference run that knows of no kill.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from prism_cli.assembly.endpoint import world_app
from prism_cli.assembly.response import grammar_of
from prism_cli.recipes.sections import ResponseSection
from prism_cli.teacher.server import ServedEndpoint

SMALL = (
    "max_steps=5 data.size=64 eval_data.size=4 prompts_per_step=2 rollouts=4 micro_batch=8 max_response_tokens=56 "
    "checkpoint.every=2 discriminator.warmup.pairs=32 discriminator.warmup.held_out=8 "
    "discriminator.warmup.batch_size=16 discriminator.warmup.epochs=1 discriminator.warmup.stop_in=null"
)
FILES = ("model/model.safetensors", "discriminator/model.safetensors", "discriminator/head.safetensors")
TIMES = ("seconds", "step_time", "teacher/wait_seconds")


def align(prism, trained, folder, more=(), **options):
    words = ["align", "tiny", "--from", trained, *SMALL.split(), *more, "--output", folder / "align"]
    return prism.start(*words, cwd=folder, **options)


@pytest.fixture(scope="module")
def reference(prism, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    started = time.monotonic()
    done = align(prism, trained, folder).wait()
    assert done.code == 0, done.stderr
    (folder / "seconds").write_text(str(time.monotonic() - started))
    return folder


def metrics(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "align/metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_end(folder: Path, reference: Path) -> None:
    for name in FILES:
        ours, theirs = load_file(folder / "align" / name), load_file(reference / "align" / name)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not equal(ours[key], theirs[key])] == [], name
    assert metrics(folder) == metrics(reference)
    assert (folder / "align/showcase.jsonl").read_text() == (reference / "align/showcase.jsonl").read_text()
    assert {p.name for p in (folder / "align").iterdir()} == {p.name for p in (reference / "align").iterdir()}
    checkpoints = [sorted(p.name for p in (f / "align/checkpoints").glob("check*")) for f in (folder, reference)]
    assert checkpoints[0] == checkpoints[1]
    assert json.loads((folder / "align/run.json").read_text())["status"] == "finished"


def test_the_reference_plays_a_real_game(reference, trained):
    lines = metrics(reference)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(line["discriminator/skipped"] == 0 for line in lines)
    before, after = load_file(trained / "model/model.safetensors"), load_file(reference / "align" / FILES[0])
    assert not all(equal(before[key], after[key]) for key in before)


LEARNER, REPLICAS = "prism_cli.discriminator.learner", "prism_cli.discriminator.replicas"
CHAINS = {
    "the warm-up": [
        ("prism_cli.evaluation.sampling:sample_responses", 1),
        ("prism_cli.worlds.shapes:Shapes.oracle", 20),
        (f"{REPLICAS}:_average_gradients", 2),
        ("prism_cli.discriminator.model:Discriminator.save_pretrained", 1),
        ("prism_cli.assembly.warmup:write_atomically", 1),  # the discriminator is there, its marker is not
    ],
    "a step": [
        (f"{REPLICAS}:_average_gradients", 4),  # the second step, whose gradients are there and whose update is not
        ("prism_cli.trainers.prompts:TeachableSampler._teachable", 3),  # the next ones are asked about, not waited for
        (f"{LEARNER}:DiscriminatorLearner.score_and_update", 2),
        ("trl.trainer.grpo_trainer:GRPOTrainer._compute_loss", 2),
    ],
    "a checkpoint": [
        ("transformers.trainer:Trainer._save_optimizer_and_scheduler", 1),  # weights are there, nothing else
        (f"{LEARNER}:DiscriminatorLearner.save", 1),  # all of the trainer's is there, nothing of ours
        ("prism_cli.trainers.checkpoints:write_atomically", 1),  # all but the marker
        ("prism_cli.trainers.checkpoints:write_atomically", 2),  # the same at step 4, on top of a whole one at step 2
        ("prism_cli.trainers.checkpoints:shutil.rmtree", 1),  # between the old one's marker and its files
    ],
    "the end": [
        ("prism_cli.trainers.full_training:_save_final", 1),  # the last step is done and saved
        ("prism_cli.models:Policy.save", 1),
        ("prism_cli.trainers.full_training:model_card", 1),
        ("prism_cli.assembly.endpoint:write_atomically", 1),
    ],
}


@pytest.mark.parametrize("kills", CHAINS.values(), ids=CHAINS)
def test_killed_at_every_place_of(kills, prism, trained, reference, tmp_path):
    for place, call in kills:
        assert align(prism, trained, tmp_path, kill=(place, call)).wait().code == -signal.SIGKILL, (place, call)
    done = align(prism, trained, tmp_path).wait()
    assert done.code == 0, done.stderr
    assert_same_end(tmp_path, reference)


def test_killed_at_random_instants(prism, trained, reference, tmp_path):
    whole, rng = float((reference / "seconds").read_text()), random.Random(0)
    for _ in range(4):
        command = align(prism, trained, tmp_path)
        time.sleep(rng.uniform(0.1, 0.8) * whole)
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
    assert align(prism, trained, tmp_path).wait().code == 0
    assert_same_end(tmp_path, reference)


def test_stopped_by_a_budget_it_keeps_its_last_step_and_ends_alike(prism, trained, reference, tmp_path):
    # The warm-up asks about rows 0 to 39. Of the first steps' prompts (44 46, 17 3, 47 21), 44, 46 and 47 are new.
    grammar = grammar_of(ResponseSection())
    with ServedEndpoint(world_app("shapes", "exact", grammar)) as served:
        teacher = f"{{type: openai, endpoint: {served.url}, model: shapes-exact, temperature: 0, check: false"
        capped = align(prism, trained, tmp_path, more=[f"teacher={teacher}, max_calls: 42}}"]).wait()
        assert capped.code == 3, capped.stderr
        assert "training is kept up to step 1" in " ".join(capped.stderr.split())
        assert [p.name for p in (tmp_path / "align/checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
        done = align(prism, trained, tmp_path, more=[f"teacher={teacher}}}"]).wait()
    assert done.code == 0, done.stderr
    assert "checkpoint-1" in done.stdout
    assert_same_end(tmp_path, reference)


def test_samples_of_a_killed_warm_up_are_kept(prism, trained, tmp_path):
    # 144 pairs are two batches: one of 128 samples, one of 16.
    more = ["discriminator.warmup.pairs=136", "micro_batch=64", "rollouts=32", "max_steps=1", "max_response_tokens=32"]
    order = ["align", "tiny", "--from", trained, *SMALL.split(), *more, "--output", "align"]
    second = ("prism_cli.evaluation.sampling:sample_responses", 2)
    assert prism(*order, cwd=tmp_path, kill=second).code == -signal.SIGKILL
    samples = tmp_path / "align/warmup/samples.jsonl"
    first = samples.read_text()
    assert first.count("\n") == 128
    samples.write_text(f"{first}[1]\n[1, ")
    # Only the second batch is left to sample, so nothing is killed at a second call.
    done = prism(*order, cwd=tmp_path, kill=second)
    assert done.code == 0, done.stderr
    assert samples.read_text().startswith(first)
    assert samples.read_text().count("\n") == 144
