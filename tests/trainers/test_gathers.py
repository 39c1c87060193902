"""What processes exchange for TRL's log of completions holds no picture."""

import copy

import torch
from PIL import Image
from trl.trainer import grpo_trainer

from prism_cli.data.rows import dataset, row
from prism_cli.models import Policy
from prism_cli.responses import Grammar, Part
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.rollout import RolloutTrainer
from prism_cli.trainers.setup import TrainerSetup
from tests.tiny import tiny_policy

GROUP, PROMPTS = 4, 2


def pictures_in(value):
    if isinstance(value, Image.Image):
        return 1
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(pictures_in, held))


def nothing(completions, **columns):
    return [0.0] * len(completions)


def test_prompts_are_gathered_without_their_pictures(tmp_path, monkeypatch):
    model, processor = tiny_policy()
    policy = Policy(copy.deepcopy(model), processor, Grammar({"all": Part((), 1.0)}, None), None)
    rows = dataset(row(str(n), "what is at b2 ?", [Image.new("RGB", (48, 48), "red")]) for n in range(PROMPTS))
    arguments = RolloutBatch(PROMPTS, GROUP, PROMPTS * GROUP, 1, 8, temperature=1.0).arguments()
    arguments |= {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    arguments |= {"gradient_checkpointing": False, "remove_unused_columns": False}
    trainer = RolloutTrainer(policy, [nothing], TrainerSetup(arguments, rows))
    trainer.model.train()
    gathered, gather = [], grpo_trainer.gather_object

    def watched(values):
        gathered.extend(values)
        return gather(values)

    monkeypatch.setattr(grpo_trainer, "gather_object", watched)
    torch.manual_seed(0)
    inputs = [rows[n] for n in range(PROMPTS) for _ in range(GROUP)]
    output = trainer._generate_and_score_completions(inputs)
    assert grpo_trainer.gather_object is watched
    assert len(output["image_grid_thw"]) == PROMPTS * GROUP, "the policy saw them"
    asked = [value[-1]["content"] for value in gathered if isinstance(value, list) and value[-1]["role"] == "user"]
    assert [block["type"] for block in asked[0]] == ["image", "text"]
    assert len(asked) == PROMPTS * GROUP
    assert pictures_in(gathered) == 0
