"""A process that generates, scores or saves for longer than collectives wait does not end a training."""

import pytest

from tests.distributed.test_training import ROLLOUTS, TINY, started, write_rows

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
ONE_STEP = {"max_steps": 1, "checkpoint.every": 1, "launch.processes": 2}


def test_processes_wait_for_late_ones_outside_of_collectives(tmp_path):
    write_rows(tmp_path)
    rl = {**ROLLOUTS, **ONE_STEP, "data.size": 32, "micro_batch": 2, "launch.zero": 2}
    sft = {**TINY, **ONE_STEP, "data": {"path": str(tmp_path / "mixed.jsonl")}, "batch_size": 2, "launch.zero": 2}
    done = started(tmp_path, 2, [("rl", "rl", rl), ("sft", "sft", sft)], program="tests.distributed.late")
    assert done.returncode == 0, done.stderr[-6000:]
    assert (tmp_path / "rl/model/model.safetensors").is_file()
    assert (tmp_path / "sft/checkpoints/checkpoint-1/complete.json").is_file()
