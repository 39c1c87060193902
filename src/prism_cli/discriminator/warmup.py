"""The discriminator's warm-up: Bradley-Terry training on pairs, measured on pairs held out, kept in checkpoints."""

import json
import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prism_cli import processes
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.pairs import Pairs
from prism_cli.discriminator.reader import PartReader
from prism_cli.discriminator.settings import Adapters, WarmupSettings
from prism_cli.progress import progress, say
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import COMPLETE, DISCRIMINATOR, checkpoint_step, last_complete_checkpoint

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
ACCURACY = "held_out/discriminator/accuracy/"


class Account(NamedTuple):
    """The account of a warm-up.

    Attributes:
        pairs: Pairs there were, those held out among them.
        steps: Steps that were taken.
        stopped: Why it ended before its last step; None where it did not.
    """

    pairs: int
    steps: int
    stopped: str | None


def warm_up(
    discriminator: Discriminator, settings: WarmupSettings, pairs: Pairs, reader: PartReader, folder: Path
) -> tuple[Discriminator, Account]:
    """Trains a discriminator on pairs, from the folder's last checkpoint if there is one.

    On several processes all call it, each with all pairs, and each reads its share of a step's.

    Args:
        discriminator: As it is before any step; not to be used after.
        settings: How it is trained.
        pairs: The first `held_out` are measured on.
        reader: Encodes prompts.
        folder: Gets metrics.jsonl, checkpoints, and the discriminator in `discriminator/`.

    Returns:
        The discriminator, warmed up, and the account of it.
    """
    steps = settings.epochs * math.ceil((len(pairs.rows) - settings.held_out) / settings.batch_size)
    trained = [weight for weight in discriminator.parameters() if weight.requires_grad]
    adapters = None if settings.adapters is None else _with_adapters(discriminator, settings.adapters)
    learner = DiscriminatorLearner.on_device(
        discriminator,
        settings.learner._replace(
            schedule="cosine", warmup_steps=round(steps * settings.warmup_fraction), total_steps=steps
        ),
    )
    reason = _learn(learner, settings, pairs, reader, steps, folder)
    if adapters is not None:
        adapters.merge_and_unload()
        for weight in trained:
            weight.requires_grad_()
    learner.save_discriminator(folder / DISCRIMINATOR)
    learner.close()
    processes.barrier()
    if settings.learner.zero:
        discriminator = Discriminator.from_pretrained(folder / DISCRIMINATOR)  # unsharded
    last = processes.from_main(lambda: _last_line(folder))
    _say_result(last, reason)
    return discriminator, Account(len(pairs.rows), last["step"], reason if last["step"] < steps else None)


def _learn(
    learner: DiscriminatorLearner,
    settings: WarmupSettings,
    pairs: Pairs,
    reader: PartReader,
    steps: int,
    folder: Path,
) -> str | None:
    """Takes the steps that are left; why it ended early, or None."""
    held_out, train = pairs.select(0, settings.held_out), pairs.select(settings.held_out, len(pairs.rows))
    done, reason = _restore(learner, folder), None
    with (
        progress("warm-up: training the discriminator", steps) as on_progress,
        open(folder / METRICS if processes.is_main() else os.devnull, "a", encoding="utf-8") as log,
    ):
        for step in range(done + 1, steps + 1):
            # Dropout draws anew each step and on each process, so a step after a restart is the same.
            torch.manual_seed((settings.seed * 1_000_000 + step) * processes.world_size() + processes.rank())
            start = (step - 1) % (steps // settings.epochs) * settings.batch_size
            batch = _share(train.select(start, start + settings.batch_size))
            line = {"step": step, **learner.score_and_update(batch.comparisons(reader)).metrics}
            if step % settings.measure_every == 0 or step == steps:
                line |= _measured(learner, _share(held_out), reader)
                reason = processes.from_main(partial(_end, settings, learner.discriminator.parts, line))
            log.write(f"{json.dumps(line)}\n")
            log.flush()
            on_progress(step)
            if reason is not None:
                break
            if step % settings.checkpoint_every == 0:
                _save(learner, folder, step)
    return reason


def _share(pairs: Pairs) -> Pairs:
    """This process's share of pairs that all processes have."""
    count, rank, world = len(pairs.rows), processes.rank(), processes.world_size()
    return pairs.select(count * rank // world, count * (rank + 1) // world)


def _measured(learner: DiscriminatorLearner, pairs: Pairs, reader: PartReader) -> dict[str, float]:
    """The metrics on held-out pairs, measured on all of them at once."""
    metrics = learner.score(pairs.comparisons(reader)).metrics
    return {f"held_out/{name}": value for name, value in metrics.items()}


def _end(settings: WarmupSettings, parts: tuple[str, ...], line: dict[str, float]) -> str | None:
    """Why the discriminator is warm enough, or None."""
    if settings.stop_in is None:
        return None
    low, high = settings.stop_in
    accuracies = {part: line.get(ACCURACY + part, 0.0) for part in parts}
    if min(accuracies.values()) < low:
        return None
    if beyond := [part for part, value in accuracies.items() if value > high]:
        return f"it tells every part, and {' and '.join(beyond)} beyond {high:g}: saturated, so measure more often"
    return f"it tells every part within {low:g} to {high:g}"


def _say_result(last: dict[str, Any], reason: str | None) -> None:
    accuracies = {name.removeprefix(ACCURACY): value for name, value in last.items() if name.startswith(ACCURACY)}
    listed = ", ".join(f"{part} {value:.2f}" for part, value in accuracies.items())
    say(
        "warm-up: the discriminator tells held-out pairs apart with accuracy "
        f"{listed or '(no held-out pair can be compared)'}"
    )
    if reason is not None:
        say(f"warm-up: ended at step {last['step']}: {reason}")


def _last_line(folder: Path) -> dict[str, Any]:
    return json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])


def _with_adapters(discriminator: Discriminator, adapters: Adapters) -> Any:
    """LoRA adapters put into the text tower, whose own weights and vision tower are then frozen."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    discriminator.body.requires_grad_(False)
    config = LoraConfig(r=adapters.rank, lora_alpha=adapters.alpha, target_modules=r".*\.(q|k|v|o|gate|up|down)_proj")
    model = LoraModel(discriminator.body.language_model, config, "default")
    model.to(discriminator.device)
    return model


# Checkpoints: what is trained, optimiser and schedule, of one step. Every process calls these. ------------------------


def _restore(learner: DiscriminatorLearner, folder: Path) -> int:
    """Continues from the last checkpoint and drops the metrics after it; gives its step, 0 without one.

    Raises:
        CheckpointError: it is sharded otherwise than the learner.
    """
    checkpoint = processes.from_main(lambda: last_complete_checkpoint(folder / CHECKPOINTS))
    step = 0
    if checkpoint is not None:
        step = checkpoint_step(checkpoint)
        learner.load_trained(checkpoint)
        say(f"continuing from {checkpoint}")
    processes.from_main(lambda: _cut_metrics(folder / METRICS, step))
    return step


def _cut_metrics(path: Path, step: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(True)[:step] if path.is_file() else []
    write_atomically(path, "".join(lines))


def _save(learner: DiscriminatorLearner, folder: Path, step: int) -> None:
    """Writes the checkpoint of a step; the one before goes when this is complete."""
    new = folder / CHECKPOINTS / f"checkpoint-{step}"
    new.mkdir(parents=True, exist_ok=True)
    learner.save_trained(new)
    processes.barrier()
    processes.from_main(lambda: _complete(new, step))


def _complete(new: Path, step: int) -> None:
    write_atomically(new / COMPLETE, json.dumps({"step": step}))
    for old in new.parent.glob("checkpoint-*"):
        if old != new:
            (old / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(old)
