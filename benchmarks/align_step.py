"""The update of one align step against TRL's plain GRPO update of the same rollouts; generation is left out.

Policy and discriminator learn from packed rows; plain GRPO trains the policy alone, in TRL's padded batches. Same
policy, prompt and rollouts, all rollouts of one length (padding would only cost TRL more), a dense discriminator of
half the policy's layers, float32, one thread. Each side runs in a process of its own, so that its memory can be seen.
Run: .venv/bin/python benchmarks/align_step.py
"""

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)

# isort: split
from packing import config, prompt
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from prism_cli.data.rows import dataset, row
from prism_cli.discriminator.inputs import Comparisons, PromptInputs
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.settings import LearnerSettings
from prism_cli.models import Policy
from prism_cli.responses import Grammar, Part
from prism_cli.tiny_models.tiny import tiny_processor
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.rollout import RolloutTrainer

ROLLOUTS, HIDDEN, LAYERS, WORDS = 16, 384, 2, 1000
# Then an image costs about as much as its tokens do in the text tower, as in the real ones.
VISION_LAYERS = 1


class Shape(NamedTuple):
    """Lengths in tokens, visual tokens a side of the picture, rollouts a pass, and how often to measure."""

    prompt: int
    response: int
    side: int
    micro_batch: int
    repeats: int


SHAPES = {"short": Shape(512, 240, 21, 16, 3), "long": Shape(1200, 1800, 31, 8, 1)}
WARM_UP = Shape(64, 16, 4, 16, 1)


class PlainTrainer(RolloutTrainer):
    """The same trainer with TRL's own passes."""

    _get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies


def trainer(kind: type[RolloutTrainer], folder: str, micro_batch: int) -> RolloutTrainer:
    processor = tiny_processor([f"w{i}" for i in range(WORDS)], pixels=48 * 48)
    torch.manual_seed(0)
    settings = config(HIDDEN, LAYERS, VISION_LAYERS, len(processor.tokenizer), image_token(processor))
    policy = Policy(Qwen3VLForConditionalGeneration(settings), processor, Grammar({"all": Part((), 1.0)}, None), None)
    batch = RolloutBatch(1, ROLLOUTS, micro_batch, 1, 16, temperature=1.0).arguments()
    common = {"output_dir": folder, "report_to": "none", "use_cpu": True, "bf16": False, "loss_type": "dapo"}
    more = {"gradient_checkpointing": False, "remove_unused_columns": False}
    rows = dataset([row("0", "w1", [])])
    one = kind(
        policy, [lambda completions, **columns: [0.0] * len(completions)], {**batch, **common, **more}, rows, None, []
    )
    one.current_gradient_accumulation_steps = one.args.gradient_accumulation_steps
    one.create_optimizer()
    return one


def image_token(processor: Any) -> int:
    return processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")


def learner() -> DiscriminatorLearner:
    """Half the policy's layers, so half its size but for the vision tower."""
    torch.manual_seed(0)
    processor = tiny_processor([f"w{i}" for i in range(WORDS)], pixels=48 * 48)
    body = Qwen3VLModel(config(HIDDEN, LAYERS // 2, VISION_LAYERS, len(processor.tokenizer), image_token(processor)))
    return DiscriminatorLearner(
        Discriminator(body, ("perception", "reasoning"), 0, "dense"), LearnerSettings(micro_batch=ROLLOUTS)
    )


def rollouts(view: PromptInputs, length: int, token: int) -> dict[str, Any]:
    """A generation batch as TRL hands it to its loss."""
    ids = torch.tensor(view.input_ids).repeat(ROLLOUTS, 1)
    said = torch.randint(0, WORDS, (ROLLOUTS, length))
    return {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": said,
        "completion_mask": torch.ones_like(said),
        "advantages": torch.linspace(-1, 1, ROLLOUTS),
        "num_items_in_batch": torch.tensor(float(said.numel())),
        "pixel_values": view.pixel_values.repeat(ROLLOUTS, 1),
        "image_grid_thw": view.image_grid_thw.repeat(ROLLOUTS, 1),
        "num_images": [1] * ROLLOUTS,
        "mm_token_type_ids": torch.cat([(ids == token).long(), torch.zeros_like(said)], 1),
    }


def update_policy(one: RolloutTrainer, batch: dict[str, Any], micro_batch: int) -> None:
    """Every micro-batch's forward and backward, then the optimiser's step."""
    split = split_tensor_dict(split_pixel_values_by_grid(batch), ROLLOUTS // micro_batch)
    for micro in (unsplit_pixel_values_by_grid(part) for part in split):
        one._compute_loss(one.model, micro).backward()
    torch.nn.utils.clip_grad_norm_(one.model.parameters(), 1.0)
    one.optimizer.step()
    one.optimizer.zero_grad()


def step(side: str, folder: str, micro_batch: int) -> Callable[[Shape], float]:
    """The processor seconds of one update, as a function of its shape."""
    one = trainer(RolloutTrainer if side == "align" else PlainTrainer, folder, micro_batch)
    one.model.train()
    discriminator = learner() if side == "align" else None
    token = image_token(one.processing_class)

    def run(shape: Shape) -> float:
        view = prompt(shape.prompt, shape.side, token)
        batch = rollouts(view, shape.response, token)
        # A sixth of a response is its caption, as at the paper's lengths.
        cut = shape.response // 6
        texts = [{"perception": ids[:cut], "reasoning": ids[cut:]} for ids in batch["completion_ids"].tolist()]
        start = time.process_time()
        if discriminator is not None:
            discriminator.score_and_update(Comparisons([view], [texts[0]], texts, [0] * ROLLOUTS))
        update_policy(one, batch, micro_batch)
        return time.process_time() - start

    return run


def measure(side: str, name: str) -> None:
    """One side of one shape: prints its median seconds and the memory that all of it took at most, beyond imports."""
    torch.set_num_threads(1)
    random.seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        run = step(side, folder, SHAPES[name].micro_batch)
        run(WARM_UP)
        seconds = statistics.median(run(SHAPES[name]) for _ in range(SHAPES[name].repeats))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "mebibytes": (peak - before) / 1024}))


# What it must cost ---------------------------------------------------------------------------------------------------


def floor(shape: Shape) -> float:
    """Multiplications of the align step's update over plain GRPO's, were nothing computed twice and nothing lost."""
    plain = _forward(LAYERS, shape, ROLLOUTS, ROLLOUTS, head=True)
    policy = _forward(LAYERS, shape, ROLLOUTS // shape.micro_batch, ROLLOUTS, head=True)
    scoring = _forward(LAYERS // 2, shape, 1, ROLLOUTS + 1, head=False)
    return (policy + scoring) / plain


def _forward(layers: int, shape: Shape, prompts: int, responses: int, head: bool) -> float:
    """Of one forward; the update is three times that on both sides. A part of a response sees what is before it."""
    p, r, h = shape.prompt, shape.response, HIDDEN
    linear = layers * (3 * h * 3 * h + 3 * h * h) + (h * (WORDS + 11) if head else 0)
    attention = layers * 2 * h * (prompts * p * p / 2 + responses * (r * p + r * r / 2))
    patches, v = 4 * shape.side**2, h // 2
    vision = VISION_LAYERS * patches * (4 * v * v + 2 * v * 2 * h + 2 * patches * v)
    vision += 2 * patches / 4 * (4 * v) * (4 * v + h)
    return linear * (prompts * p + responses * r) + attention + prompts * vision


def main() -> None:
    """Prints times, their ratio beside the floor, and memory."""
    for name, shape in SHAPES.items():
        found = {}
        for side in ("plain", "align"):
            done = subprocess.run([sys.executable, __file__, side, name], capture_output=True, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        plain, align = found["plain"], found["align"]
        print(f"{shape.prompt} + {shape.response} tokens, {ROLLOUTS} rollouts, {shape.micro_batch} at a time")
        times = ", ".join(f"{side} {one['seconds']:.1f} s" for side, one in found.items())
        print(f"  {times}: ×{align['seconds'] / plain['seconds']:.2f} (floor ×{floor(shape):.2f})")
        memory = ", ".join(f"{side} {one['mebibytes']:.0f} MiB" for side, one in found.items())
        print(f"  peak {memory}: ×{align['mebibytes'] / plain['mebibytes']:.2f}", flush=True)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
