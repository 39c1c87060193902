"""A step that fails midway: what was trained before it is kept, and goes on as if nothing had happened."""

import pytest
import torch

from prism_cli.assembly.data import load_data
from prism_cli.errors import BudgetError
from prism_cli.models import load_policy
from prism_cli.recipes.sections import WorldData
from prism_cli.trainers.checkpoints import CompleteCheckpoints
from prism_cli.trainers.last_step import LastStep
from tests.trainers.test_rollouts import Align


class Run(Align):
    """Three steps of alignment whose teacher fails when it is asked for the answers of one."""

    def __init__(self, policy, rows, folder, fails_at=None):
        super().__init__(policy, rows, folder, max_steps=3, logging_steps=1, save_steps=100)
        self.last, self.calls = LastStep(), 0
        given = self.trainer.teacher

        def answers(wanted):
            self.calls += 1
            if self.calls == fails_at:
                raise BudgetError("spent")
            return given.answers(wanted)

        self.trainer.teacher = given._replace(answers=answers)
        self.trainer.add_callback(self.last)
        self.trainer.add_callback(CompleteCheckpoints(2))

    def everything(self):
        return {**self.weights(), **{f"policy.{name}": w for name, w in self.trainer.model.state_dict().items()}}


@pytest.fixture
def start(trained, tmp_path):
    def run(folder, **options):
        policy = load_policy(trained / "model")
        torch.manual_seed(0)  # the discriminator's head is random
        data = WorldData(type="world", split="train", size=8, seed=3)
        return Run(policy, load_data(data, policy.settings), tmp_path / folder, **options)

    return run


def test_a_run_that_failed_in_a_step_ends_like_one_that_did_not(start, tmp_path):
    whole = start("whole")
    whole.trainer.train()
    failing = start("failing", fails_at=3)
    with pytest.raises(BudgetError):
        failing.trainer.train()
    # The failed step, the first of a second epoch, has rolled out by then: the random state has moved on.
    assert failing.last.save(failing.trainer) == failing.last.save(failing.trainer) == 2
    (checkpoint,) = (tmp_path / "failing").glob("checkpoint-*")
    assert {"complete.json", "discriminator", "optimizer.pt"} <= {path.name for path in checkpoint.iterdir()}
    again = start("failing")
    again.trainer.train(resume_from_checkpoint=str(checkpoint))
    assert again.calls == 1
    ours, theirs = again.everything(), whole.everything()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_run_that_failed_in_its_first_step_has_nothing_to_keep(start, tmp_path):
    failing = start("failing", fails_at=1)
    with pytest.raises(BudgetError):
        failing.trainer.train()
    assert failing.last.save(failing.trainer) == 0
    assert not list(tmp_path.glob("failing/checkpoint-*"))
