"""`prism discriminator`: made, warmed up on pairs of a file or sampled ones, killed on the way, used by align."""

import json
import signal

import pytest
from safetensors.torch import load_file
from torch import equal

from prism_cli.discriminator.model import Discriminator
from tests.tiny import tiny_policy

FILES = ("model.safetensors", "head.safetensors")
# 5 steps of 8 pairs; a checkpoint after the second and the fourth.
LENGTH = (
    "discriminator.warmup.pairs=40 discriminator.warmup.held_out=8 discriminator.warmup.batch_size=8 "
    "discriminator.warmup.checkpoint_every=2 discriminator.warmup.measure_every=1 discriminator.dropout=0.1 "
    "discriminator.warmup.epochs=1 discriminator.warmup.stop_in=null"
)
GAME = (
    "max_steps=1 data.size=16 eval_data=null prompts_per_step=2 rollouts=4 micro_batch=8 max_response_tokens=56 "
    "checkpoint.every=10"
)


@pytest.fixture(scope="module")
def pairs(prism, trained, tmp_path_factory):
    """A file of pairs as `prism collect` writes it."""
    folder = tmp_path_factory.mktemp("pairs")
    done = prism("collect", "tiny", "--from", trained, "data.size=64", "samples=1", cwd=folder)
    assert done.code == 0, done.stderr
    return folder / "runs/collect/data/pairs.jsonl"


@pytest.fixture
def warmup(prism, trained, pairs, tmp_path):
    """Starts `prism discriminator warmup` on the pairs."""

    def start(*words, output="discriminator", **options):
        order = ["discriminator", "warmup", "tiny", "--from", trained, "--data", pairs, *LENGTH.split(), *words]
        return prism(*order, "--output", tmp_path / output, cwd=tmp_path, **options)

    return start


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def changed(folder, other):
    """Weights in which two discriminators differ."""
    ours, theirs = ({f: load_file(one / "discriminator" / f) for f in FILES} for one in (folder, other))
    assert all(ours[file].keys() == theirs[file].keys() for file in FILES)
    return [name for file in FILES for name in ours[file] if not equal(ours[file][name], theirs[file][name])]


def test_a_killed_warm_up_ends_as_one_that_was_never_killed(warmup, tmp_path):
    done = warmup(output="whole")
    assert done.code == 0, done.stderr
    kept = "prism_cli.discriminator.warmup:"
    for place, call in ((f"{kept}_save", 2), (f"{kept}shutil.rmtree", 1), (f"{kept}_measured", 1)):
        assert warmup(kill=(place, call)).code == -signal.SIGKILL, place
    assert [p.name for p in (tmp_path / "discriminator/checkpoints").glob("*/complete.json")] == ["complete.json"]
    done = warmup()
    assert done.code == 0, done.stderr
    assert "continuing from" in done.stdout
    assert "checkpoint-4" in done.stdout
    whole, made = tmp_path / "whole", tmp_path / "discriminator"
    assert changed(made, whole) == []
    assert metrics(made) == metrics(whole)
    assert [line["step"] for line in metrics(made)] == [1, 2, 3, 4, 5]
    assert all(line["held_out/discriminator/loss/perception"] > 0 for line in metrics(made))
    assert {p.name for p in made.iterdir()} == {p.name for p in whole.iterdir()}
    assert not (made / "checkpoints").exists()


def test_a_created_discriminator_is_warmed_up_and_used_by_align(prism, trained, pairs, warmup, tmp_path):
    made = prism(
        *("discriminator", "create", "--from", trained, "--noise-scale", "relative", "--head-std", "1"),
        *("--readout", "mean", "--output", tmp_path / "cold"),
        cwd=tmp_path,
    )
    assert made.code == 0, made.stderr
    assert "without noise" in made.stdout
    moe = ["discriminator.type=moe"]
    done = warmup(*moe, f"discriminator.path={tmp_path / 'cold'}")
    assert done.code == 0, done.stderr
    warm = tmp_path / "discriminator/discriminator"
    assert f"discriminator.path={warm}" in done.stdout
    assert Discriminator.from_pretrained(warm).parts == ("perception", "reasoning")
    cold, trained_on = (load_file(folder / "model.safetensors") for folder in (tmp_path / "cold", warm))
    router = "language_model.layers.0.mlp.gate.weight"
    assert not equal(cold[router], trained_on[router])
    game = ["align", "tiny", "--from", trained, *GAME.split(), *moe, "discriminator.dropout=0.1"]
    done = prism(*game, f"discriminator.path={warm}", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert not (tmp_path / "runs/align/warmup").exists()
    # The cold one is not used as it is.
    file = f"discriminator.warmup={{data: {{path: {pairs}}}, pairs: 8, held_out: 8}}"
    done = prism(*game, f"discriminator.path={tmp_path / 'cold'}", file, "--output", "from_cold", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "from_cold/warmup/complete.json").read_text())["pairs"] == 16
    assert not (tmp_path / "from_cold/warmup/samples.jsonl").exists()


def test_it_ends_once_every_part_is_told_apart(warmup, tmp_path):
    done = warmup("discriminator.warmup.stop_in=[0.0, 1.0]")
    assert done.code == 0, done.stderr
    assert "ended at step 1: it tells every part within 0 to 1" in done.stdout
    assert len(metrics(tmp_path / "discriminator")) == 1
    done = warmup("discriminator.warmup.stop_in=[0.999, 1.0]", output="never")
    assert len(metrics(tmp_path / "never")) == 5


def test_adapters_leave_a_full_discriminator_whose_vision_tower_is_unchanged(warmup, tmp_path):
    lora = "discriminator.warmup.lora={rank: 4, alpha: 8}"
    assert warmup(lora, output="whole").code == 0
    assert warmup(lora, kill=("prism_cli.discriminator.warmup:_save", 2)).code == -signal.SIGKILL
    done = warmup(lora)
    assert done.code == 0, done.stderr
    assert "checkpoint-2" in done.stdout
    assert changed(tmp_path / "discriminator", tmp_path / "whole") == []
    assert warmup("discriminator.warmup.pairs=1", "discriminator.warmup.learning_rate=1e-30", output="cold").code == 0
    moved = changed(tmp_path / "discriminator", tmp_path / "cold")
    assert "language_model.layers.0.self_attn.q_proj.weight" in moved
    assert "weight" in moved, "the head"
    assert not [name for name in moved if name.startswith("visual.") or "norm" in name or "embed" in name]


def test_pairs_are_sampled_where_no_file_is_named(prism, trained, tmp_path):
    order = ["discriminator", "warmup", "tiny", "--from", trained, *LENGTH.split(), "data.size=16"]
    done = prism(*order, cwd=tmp_path)
    assert done.code == 0, done.stderr
    folder = tmp_path / "runs/warmup"
    assert (folder / "samples.jsonl").read_text().count("\n") == 48
    assert json.loads((folder / "teacher.json").read_text())["calls"] >= 16
    assert "finished" in prism(*order, cwd=tmp_path).stdout


def test_what_can_not_be_warmed_up_is_refused_before_anything_is_sampled(prism, trained, pairs, warmup, tmp_path):
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    lines = [line | {"image": str(pairs.parent / line["image"])} for line in lines]
    cut = pairs.parent / "cut.jsonl"
    cut.write_text("".join(json.dumps(line | {"student_response": "<think> hm"}) + "\n" for line in lines))
    done = warmup("--data", cut)
    assert done.code == 1
    assert f"0 teacher answers and {min(48, len(lines))} policy samples" in done.stderr
    assert "the policy's side" in done.stderr
    few = warmup("discriminator.warmup.held_out=500", output="few")
    assert "500 are held out: none is left" in few.stderr
    nothing = prism("discriminator", "warmup", "--from", trained, "--dry-run", cwd=tmp_path)
    assert (nothing.code, "has no pairs" in nothing.stderr) == (2, True)
    model, processor = tiny_policy()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "other")
    order = ["align", "tiny", "--from", trained, *GAME.split(), f"discriminator.base={tmp_path / 'other'}"]
    done = prism(*order, cwd=tmp_path)
    assert done.code == 2
    assert "another vocabulary" in done.stderr
    assert not (tmp_path / "runs/align/warmup").exists()
    dry = warmup("--dry-run", output="dry")
    assert dry.code == 0, dry.stderr
    assert "40 pairs at most" in dry.stderr
    assert not (tmp_path / "dry").exists()
