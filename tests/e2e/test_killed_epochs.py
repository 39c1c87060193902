"""A run that is killed in its second or third pass over the data sees the rows in the order it would have seen."""

import json
import signal

import pytest
from safetensors.torch import load_file
from torch import equal

# Four steps a pass, ten in all; checkpoints at 2, 4 (a pass ends), 6, 8 (another), 10.
COMMON = "max_steps=10 data.size=16 checkpoint.every=2 log_every=1 eval_data=null checkpoint.evaluate_every=null"
ROLLOUTS = "--from TRAINED prompts_per_step=4 rollouts=2 micro_batch=8 max_response_tokens=32"
LINES = {
    "sft": f"sft tiny {COMMON} batch_size=4 model.hidden=64",
    "align": f"align tiny {COMMON} {ROLLOUTS} discriminator.warmup.pairs=16 discriminator.warmup.held_out=4",
    "rl": f"rl tiny {COMMON} {ROLLOUTS}",
}
STEP = "transformers.trainer:Trainer.training_step"
# From the start into the second pass; from its beginning to near its end; from its middle into the third pass.
KILLS = [(STEP, 6), (STEP, 4), (STEP, 3)]
# Times, and TRL's own counter, which it does not keep in a checkpoint.
LEFT_OUT = ("seconds", "step_time", "teacher/wait_seconds", "num_tokens")


def metrics(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in LEFT_OUT} for line in lines]


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_run_killed_in_a_later_epoch_ends_like_one_that_was_not(prism, tmp_path, request, line):
    if "TRAINED" in line:
        line = line.replace("TRAINED", str(request.getfixturevalue("trained")))
    whole = prism(*line.split(), "--output", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.stderr
    for kill in KILLS:
        assert prism(*line.split(), "--output", "killed", cwd=tmp_path, kill=kill).code == -signal.SIGKILL, kill
    done = prism(*line.split(), "--output", "killed", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "checkpoint-8" in done.stdout, "every start before went on from where the last was killed"
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("killed", "whole"))
    assert [key for key in theirs if not equal(ours[key], theirs[key])] == []
