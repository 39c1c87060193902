"""The judge's training on pairs, kept in checkpoints: Bradley-Terry, measured on pairs held out."""

import json
import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import get_console

from prism_cli import processes
from prism_cli.assembly.discriminator import learner_for
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.pairs import Pairs
from prism_cli.discriminator.reader import PartReader
from prism_cli.progress import progress, say
from prism_cli.recipes.alignment import MoEDiscriminator, WarmupSection
from prism_cli.recipes.stages import AlignRecipe, WarmupRecipe
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import COMPLETE, checkpoint_step, last_complete_checkpoint

# Published value; the game itself has none unless the recipe sets one.
WARMUP_BALANCE = 0.01
METRICS = "metrics.jsonl"
ACCURACY = "held_out/discriminator/accuracy/"


def warm(
    recipe: AlignRecipe | WarmupRecipe,
    judge: Discriminator,
    pairs: Pairs,
    reader: PartReader,
    folder: Path,
    result: Path,
) -> tuple[Discriminator, dict[str, Any]]:
    """Trains the judge on pairs, from the folder's last checkpoint if there is one; gives it with an account of it.

    On several processes all call it, each with all pairs, and each reads its share of a step's.

    Args:
        recipe: Of the stage.
        judge: As it is before any step; not to be used after.
        pairs: The first `held_out` are measured on.
        reader: Encodes prompts.
        folder: Gets metrics.jsonl, and checkpoints while it lasts.
        result: Folder that the judge is saved in.
    """
    section = recipe.discriminator.warmup
    steps = section.epochs * math.ceil((len(pairs.rows) - section.held_out) / section.batch_size)
    trained = [weight for weight in judge.parameters() if weight.requires_grad]
    adapters = _adapters(section, judge)
    # Adapters are merged into weights that are all here; their optimiser is too small to shard.
    whole = adapters is not None
    learner = learner_for(
        recipe,
        judge,
        whole,
        learning_rate=section.learning_rate,
        schedule="cosine",
        warmup_steps=round(steps * section.warmup_fraction),
        total_steps=steps,
        balance=WARMUP_BALANCE if isinstance(recipe.discriminator, MoEDiscriminator) else 0.0,
    )
    why = _learn(learner, section, pairs, reader, steps, recipe.seed, folder)
    if adapters is not None:
        adapters.merge_and_unload()
        for weight in trained:
            weight.requires_grad_()
    learner.save_discriminator(result)
    learner.close()
    processes.barrier()
    if recipe.launch.zero and not whole:
        judge = Discriminator.from_pretrained(result)  # what was sharded is whole there
    _say(line := processes.from_main(lambda: _last_line(folder)), why)
    return judge, {"pairs": len(pairs.rows), "steps": line["step"], "stopped": why if line["step"] < steps else None}


def _learn(
    learner: DiscriminatorLearner,
    section: WarmupSection,
    pairs: Pairs,
    reader: PartReader,
    steps: int,
    seed: int,
    folder: Path,
) -> str | None:
    """Takes the steps that are left; why it ended early, or None."""
    held_out, train = pairs.select(0, section.held_out), pairs.select(section.held_out, len(pairs.rows))
    kept = _Kept(folder, learner)
    done, why = kept.restore(), None
    with (
        progress("warm-up: training the discriminator", steps) as on_progress,
        open(folder / METRICS if processes.is_main() else os.devnull, "a", encoding="utf-8") as log,
    ):
        for step in range(done + 1, steps + 1):
            # Dropout draws anew each step and on each process, so a step after a restart is the same.
            torch.manual_seed((seed * 1_000_000 + step) * processes.world_size() + processes.rank())
            place = (step - 1) % (steps // section.epochs) * section.batch_size
            batch = _share(train.select(place, place + section.batch_size))
            line = {"step": step, **learner.score_and_update(batch.comparisons(reader)).metrics}
            if step % section.measure_every == 0 or step == steps:
                line |= _measured(learner, _share(held_out), reader)
                why = processes.from_main(partial(_reached, section, learner.discriminator.parts, line))
            log.write(f"{json.dumps(line)}\n")
            log.flush()
            on_progress(step)
            if why is not None:
                break
            if step % section.checkpoint_every == 0:
                kept.save(step)
    return why


def _share(pairs: Pairs) -> Pairs:
    """This process's share of pairs that all processes have."""
    count, rank, world = len(pairs.rows), processes.rank(), processes.world_size()
    return pairs.select(count * rank // world, count * (rank + 1) // world)


def _measured(learner: DiscriminatorLearner, pairs: Pairs, reader: PartReader) -> dict[str, float]:
    """The judge's metrics on held-out pairs, measured on all of them at once."""
    metrics = learner.score(pairs.comparisons(reader)).metrics
    return {f"held_out/{name}": value for name, value in metrics.items()}


def _reached(section: WarmupSection, parts: tuple[str, ...], line: dict[str, float]) -> str | None:
    """Why the judge is warm enough, or None."""
    if section.stop_in is None:
        return None
    low, high = section.stop_in
    found = {part: line.get(ACCURACY + part, 0.0) for part in parts}
    if min(found.values()) < low:
        return None
    if beyond := [part for part, value in found.items() if value > high]:
        return f"it tells every part, and {' and '.join(beyond)} beyond {high:g}: saturated, so measure more often"
    return f"it tells every part within {low:g} to {high:g}"


def _say(last: dict[str, Any], why: str | None) -> None:
    found = {name.removeprefix(ACCURACY): value for name, value in last.items() if name.startswith(ACCURACY)}
    told = ", ".join(f"{part} {value:.2f}" for part, value in found.items())
    print_line = get_console().print
    print_line(f"warm-up: the judge tells held-out pairs apart with accuracy {told or '(no held-out pair compares)'}")
    if why is not None:
        print_line(f"warm-up: ended at step {last['step']}: {why}", markup=False, highlight=False)


def _last_line(folder: Path) -> dict[str, Any]:
    return json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])


def _adapters(section: WarmupSection, judge: Discriminator) -> Any:
    """LoRA adapters put into the judge's text tower, whose own weights and eyes then stand still; None without."""
    if section.lora is None:
        return None
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    judge.body.requires_grad_(False)
    config = LoraConfig(
        r=section.lora.rank,
        lora_alpha=section.lora.alpha,
        target_modules=r".*\.(q|k|v|o|gate|up|down)_proj",
    )
    model = LoraModel(judge.body.language_model, config, "default")
    model.to(judge.device)
    return model


class _Kept:
    """The last checkpoint of a warm-up: what is trained, optimiser and schedule. Every process calls its methods.

    Args:
        folder: Of the warm-up.
        learner: What is kept and restored.
    """

    def __init__(self, folder: Path, learner: DiscriminatorLearner):
        self._folder, self._learner = folder, learner

    def restore(self) -> int:
        """Continues from the last checkpoint and drops the metrics after it; gives its step, 0 without one.

        Raises:
            CheckpointError: it is sharded otherwise than the learner.
        """
        checkpoint = processes.from_main(lambda: last_complete_checkpoint(self._folder / "checkpoints"))
        step = 0
        if checkpoint is not None:
            step = checkpoint_step(checkpoint)
            self._learner.load_trained(checkpoint)
        processes.from_main(lambda: self._begin(checkpoint, step))
        return step

    def _begin(self, checkpoint: Path | None, step: int) -> None:
        if checkpoint is not None:
            say(f"continuing from {checkpoint}")
        path = self._folder / METRICS
        lines = path.read_text(encoding="utf-8").splitlines(True)[:step] if path.is_file() else []
        write_atomically(path, "".join(lines))

    def save(self, step: int) -> None:
        """Keeps a step; the one before goes when this is complete."""
        checkpoints = self._folder / "checkpoints"
        new = checkpoints / f"checkpoint-{step}"
        new.mkdir(parents=True, exist_ok=True)
        self._learner.save_trained(new)
        processes.barrier()
        processes.from_main(lambda: self._complete(new, step))

    def _complete(self, new: Path, step: int) -> None:
        write_atomically(new / COMPLETE, json.dumps({"step": step}))
        for old in new.parent.glob("checkpoint-*"):
            if old != new:
                (old / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(old)
