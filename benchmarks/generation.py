"""Rollouts of the tiny policy by vLLM and by transformers: seconds a step, tokens a second, and whether they agree.

One trainer's step is a generation of 12 prompts × 8 rollouts with its log-probabilities; both backends in this process,
float32, one thread. Greedy answers are compared on the same prompts. Needs vLLM (`make test-vllm` makes its place).
Run: .venv-vllm/bin/python benchmarks/generation.py
"""

import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")

import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)

# isort: split
import torch

from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import resolved, sampler, vllm_rollouts
from prism_cli.assembly.policy import start_policy
from prism_cli.assembly.response import grammar_of
from prism_cli.evaluation.backend import TRANSFORMERS
from prism_cli.models import Policy, load_policy, multimodal
from prism_cli.recipes.generation import VLLMGeneration
from prism_cli.recipes.sections import ImageSection, ResponseSection, TinyModel, WorldData
from prism_cli.recipes.stages import RLRecipe, SFTRecipe
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.rollout import RolloutTrainer

PROMPTS, ROLLOUTS, TOKENS, STEPS = 12, 8, 64, 5
QUESTIONS = 64
BACKENDS = {"transformers": TRANSFORMERS, "vllm": resolved(VLLMGeneration())}


def saved_policy(folder: Path) -> Path:
    """A tiny policy with random weights, spread so that its tokens vary."""
    budget = ImageSection(min_pixels=2304, max_pixels=2304)
    recipe = SFTRecipe(model=TinyModel(type="tiny"), response=ResponseSection(instruction=None), image=budget)
    policy = start_policy(recipe)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(weight.std().nan_to_num(0.1) * torch.randn(weight.shape, generator=noise))
    Policy(policy.model, policy.processor, grammar_of(ResponseSection()), None).save(folder)
    return folder


def trainer_of(name: str, folder: Path, rows, out: Path) -> RolloutTrainer:
    """A trainer whose rollouts this backend makes."""
    policy = load_policy(folder)
    recipe = RLRecipe(max_prompt_tokens=64, max_response_tokens=TOKENS)
    batch = RolloutBatch(PROMPTS, ROLLOUTS, PROMPTS * ROLLOUTS, 1, TOKENS, temperature=1.0)
    plain = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    options = {**batch.arguments(), **plain, "output_dir": str(out), "remove_unused_columns": False}
    how = vllm_rollouts(BACKENDS[name], policy, recipe.longest_tokens)
    return RolloutTrainer(
        policy, [lambda completions, **_: [0.0] * len(completions)], options, rows, None, [], None, how
    )


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = saved_policy(Path(scratch) / "model")
        policy = load_policy(folder)
        rows: Any = load_data(WorldData(type="world", size=QUESTIONS), policy.settings)
        greedy, walls, tokens, gap = {}, {}, {}, None
        for name, backend in BACKENDS.items():
            conversations = [multimodal(one["prompt"], one["images"]) for one in rows]
            with sampler(backend, load_policy(folder), folder, max_tokens=TOKENS, batch_size=QUESTIONS) as sample:
                greedy[name] = [one.token_ids for one in sample(conversations, temperature=0.0, seed=0)]
            trainer = trainer_of(name, folder, rows, Path(scratch) / name)
            batch = [rows[i] for i in range(PROMPTS) for _ in range(ROLLOUTS)]
            trainer._generate_and_score_completions(copy.copy(batch))
            seconds, made = [], []
            for _ in range(STEPS):
                started = time.process_time()
                output = trainer._generate_and_score_completions(copy.copy(batch))
                seconds.append(time.process_time() - started)
                made.append(int(output["completion_mask"].sum()))
            walls[name], tokens[name] = statistics.median(seconds), sum(made) / sum(seconds)
            if name == "vllm":
                off = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).abs()
                gap = off[output["completion_mask"].bool()].mean().item()
        same = statistics.fmean(a == b for a, b in zip(*greedy.values(), strict=True))
    for name in BACKENDS:
        print(f"{name:13} {walls[name]:6.2f} s of CPU a step, {tokens[name]:6.0f} tokens a second")
    ratio = walls["vllm"] / walls["transformers"]
    print(f"vllm / transformers {ratio:.2f}; median of {STEPS} steps of {PROMPTS} × {ROLLOUTS} rollouts")
    print(f"greedy answers alike: {same:.1%} of {QUESTIONS}")
    print(f"mean difference of a sampled token's log-probability: {gap:.1e} nats")


if __name__ == "__main__":
    main()
