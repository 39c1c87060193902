"""One step of dynamic sampling on each of two processes (gloo); writes what each saw as rank-N.json into a folder."""

import json
import os
import sys
from pathlib import Path

import torch

import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)
from prism_cli import processes
from prism_cli.assembly.data import load_data
from prism_cli.models import Policy
from prism_cli.recipes.sections import WorldData
from prism_cli.responses import Grammar, Part
from prism_cli.trainers.algorithms import TOKEN_LEVEL, Resampling
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.dapo import DAPOTrainer
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.verified_reward import VerifiedReward
from tests.tiny import tiny_policy

GROUP, PROMPTS = 4, 4
GOOD, ALL_RIGHT, ALL_WRONG = [1, 0, 1, 0], [1] * GROUP, [0] * GROUP
# Groups of this process in the order it rolls them out: four in each of two rounds.
OUTCOMES = [
    [GOOD, GOOD, GOOD, ALL_WRONG, GOOD, GOOD, GOOD, GOOD],
    [ALL_RIGHT, ALL_WRONG, ALL_WRONG, ALL_RIGHT, ALL_WRONG, GOOD, ALL_RIGHT, ALL_RIGHT],
]


def main(folder: Path) -> None:
    """Trains one step."""
    processes.start()  # as every stage does, before the trainer connects them
    torch.set_num_threads(1)
    model, processor = tiny_policy()
    policy = Policy(model, processor, Grammar({"all": Part((), 1.0)}, None), None)
    rows = load_data(WorldData(type="world", split="train", size=40, seed=3), policy.settings)
    cut = RolloutBatch(PROMPTS, GROUP, 4, 2, 12, temperature=1.0).arguments()
    common = {"output_dir": str(folder / "out"), "report_to": "none", "use_cpu": True, "bf16": False}
    common |= {"gradient_checkpointing": False, "remove_unused_columns": False, "save_strategy": "no", "max_steps": 1}
    calls = iter(range(10**6))
    rank = int(os.environ["RANK"])

    def accuracy(response, row, length):
        call = next(calls)
        return OUTCOMES[rank][call // GROUP][call % GROUP]

    arguments = {**cut, **common, **TOKEN_LEVEL, "learning_rate": 1e-2}
    rules = VerifiedReward({"accuracy": accuracy}, {"accuracy": 1.0})
    how = Resampling(oversample=2, max_rounds=2)
    trainer = DAPOTrainer(policy, rules, TrainerSetup(arguments, rows), how)
    before = sum(p.double().sum().item() for p in model.parameters())
    trainer.train()
    masks = torch.cat([part["completion_mask"] for part in trainer._buffered_inputs])
    after = sum(p.double().sum().item() for p in model.parameters())
    found = {
        "kept": trainer.sampling.tally.kept,
        "rounds": trainer.sampling.tally.rounds,
        "seen": trainer.sampling.cursor.seen,
        "real": int(masks.any(1).sum()),
        "own_tokens": int(masks.sum()),
        "tokens": int(trainer._buffered_inputs[0]["num_items_in_batch"]),
        "weights": after,
        "moved": after != before,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
