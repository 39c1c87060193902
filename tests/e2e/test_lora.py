"""Adapters: a killed LoRA run ends like one that was not, its checkpoints are small, and each becomes a whole model."""

import json
import signal

import pytest
from safetensors.torch import load_file
from torch import equal

COMMON = "max_steps=4 prompts_per_step=2 rollouts=4 micro_batch=8 max_response_tokens=56 checkpoint.every=2"
ADAPTERS = "lora={rank:\u00a04, vision:\u00a0true}".replace(", ", ",\u00a0")
RL = f"rl tiny --from TRAINED data.size=16 eval_data=null checkpoint.evaluate_every=null rollouts_every=null {COMMON}"
ALIGN = (
    f"align tiny --from TRAINED data.size=64 eval_data=null {COMMON} discriminator.warmup.pairs=32 "
    "discriminator.warmup.held_out=8 discriminator.warmup.batch_size=16"
)


def same(one, other):
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    return [key for key in ours if not equal(ours[key], theirs[key])]


@pytest.mark.parametrize("line", [RL, ALIGN], ids=["rl", "align"])
def test_a_killed_run_with_adapters_ends_like_one_that_was_not(prism, trained, tmp_path, line):
    words = [word.replace("\u00a0", " ") for word in f"{line} {ADAPTERS}".replace("TRAINED", str(trained)).split(" ")]
    whole = prism(*words, "--output", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.stderr
    # Two steps and a checkpoint; then the kill.
    kill = ("transformers.trainer:Trainer.training_step", 3)
    assert prism(*words, "--output", "killed", cwd=tmp_path, kill=kill).code == -signal.SIGKILL
    done = prism(*words, "--output", "killed", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "continuing from killed/checkpoints/checkpoint-2" in done.stdout
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert same(tmp_path / "killed" / file, tmp_path / "whole" / file) == []
    changed = same(tmp_path / "whole/model/model.safetensors", trained / "model/model.safetensors")
    assert changed
    assert all("norm" not in name and "embed" not in name for name in changed)
    assert_checkpoints_are_adapters_and_export_whole(prism, tmp_path)


def assert_checkpoints_are_adapters_and_export_whole(prism, folder):
    last = folder / "whole/checkpoints/checkpoint-4"
    assert not (last / "model.safetensors").exists()
    assert json.loads((last / "adapter_config.json").read_text())["r"] == 4
    # A kill while writing leaves nothing behind that a second start would stumble over.
    words = ("export", "whole@4", "--output", "exported")
    assert prism(*words, cwd=folder, kill=("prism_cli.models:Policy.save", 1)).code == -signal.SIGKILL
    assert not (folder / "exported").exists()
    done = prism(*words, cwd=folder)
    assert done.code == 0, done.stderr
    assert same(folder / "exported/model.safetensors", folder / "whole/model/model.safetensors") == []
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
