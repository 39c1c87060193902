"""A killed `prism sft` or `prism rl`, run again, ends exactly where one that was never killed ends."""

import json
import signal

import pytest
from safetensors.torch import load_file
from torch import equal

SFT = (
    "sft tiny max_steps=6 data.size=64 eval_data.size=16 batch_size=8 model.hidden=64 log_every=2 "
    "checkpoint.every=3 checkpoint.evaluate_every=3 checkpoint.best_by=loss"
)
RL = (
    "rl tiny --from TRAINED max_steps=4 data.size=16 eval_data.size=4 prompts_per_step=2 rollouts=4 micro_batch=4 "
    "max_response_tokens=48 checkpoint.every=2 checkpoint.evaluate_every=2"
)
KILLS = [
    ("transformers.trainer:Trainer.training_step", 2),
    ("transformers.trainer:Trainer.evaluate", 1),
    ("prism_cli.trainers.checkpoints:write_atomically", 1),
    ("transformers.trainer:Trainer._save_optimizer_and_scheduler", 2),
    ("prism_cli.trainers.full_training:_save_final", 1),
    ("prism_cli.models:Policy.save", 1),
]
TIMES = ("seconds", "step_time", "eval/runtime", "eval/samples_per_second", "eval/steps_per_second")
# TRL's own counter, which it does not keep in a checkpoint.
FORGOTTEN = ("num_tokens", "eval/num_tokens")


def metrics(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES + FORGOTTEN} for line in lines]


@pytest.mark.parametrize("line", [f"{SFT} lora={{rank:\u00a04}}", RL], ids=["sft with lora", "rl"])
def test_a_killed_run_ends_like_one_that_was_not(prism, trained, tmp_path, line):
    words = [word.replace("\u00a0", " ") for word in line.replace("TRAINED", str(trained)).split(" ")]
    whole = prism(*words, "--output", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.stderr
    for kill in KILLS:
        assert prism(*words, "--output", "killed", cwd=tmp_path, kill=kill).code == -signal.SIGKILL, kill
    done = prism(*words, "--output", "killed", cwd=tmp_path)
    assert done.code == 0, done.stderr
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not equal(ours[key], theirs[key])] == []
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
