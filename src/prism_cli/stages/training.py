"""What SFT, align and RL do alike around their trainers: arguments, callbacks, resume, the final model and its card."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import get_console
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from prism_cli.errors import BudgetError, PrismError, RewardError, TeacherError
from prism_cli.models import Policy, adapters_in_float32, has_adapters, in_four_bits, save_adapter
from prism_cli.recipes.stages import TrainingStage
from prism_cli.runs import Run
from prism_cli.stages.build import with_adapter
from prism_cli.stages.card import model_card
from prism_cli.trainers.arguments import AdamW, Schedule, shared_arguments
from prism_cli.trainers.callbacks import (
    AlreadyTrainedError,
    CompleteCheckpoints,
    MetricsLog,
    NoExtraStep,
    RichProgress,
    StopOnNonFinite,
)
from prism_cli.trainers.drift_stop import StopWhenFlat
from prism_cli.trainers.last_step import LastStep

ADAPTER = "adapter"


def arguments(recipe: TrainingStage, run: Run, extra: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of TRL's config; the recipe's `trainer:` options come last."""
    checkpoint, optimizer = recipe.checkpoint, recipe.optimizer
    schedule = Schedule(
        recipe.max_steps,
        recipe.epochs,
        recipe.log_every,
        checkpoint.every,
        checkpoint.evaluate_every,
        checkpoint.best_by,
    )
    adamw = AdamW(**optimizer.model_dump())
    return shared_arguments(run.folder / "checkpoints", recipe.seed, schedule, adamw, {**extra, **recipe.trainer})


def callbacks(
    recipe: TrainingStage,
    run: Run,
    policy: Policy,
    stage: str,
    shown: dict[str, str],
    savers: Sequence[Callable[[Path], None]] = (),
) -> list[TrainerCallback]:
    """The watchers of a training stage; `savers` add to each checkpoint."""
    return [
        NoExtraStep(),
        StopOnNonFinite(),
        MetricsLog(run.folder / "metrics.jsonl"),
        RichProgress(stage, shown, get_console()),
        CompleteCheckpoints([policy.save_response_settings, *savers], recipe.checkpoint.keep),
        LastStep(),
    ]


def seed(recipe: TrainingStage) -> None:
    """Seeds what is random in building a trainer (adapters)."""
    set_seed(recipe.seed)


def train(
    trainer: Trainer, run: Run, policy: Policy, restore: Callable[[Path], None] = lambda checkpoint: None
) -> None:
    """Trains to the end, from the last complete checkpoint if there is one, and writes the final model.

    Args:
        trainer: Built from the policy.
        run: The run's folder.
        policy: Its processor and settings go with the model.
        restore: Brings back what the trainer doesn't keep itself.

    Raises:
        TeacherError: it failed; the last whole step is kept in a checkpoint.
        BudgetError: as above.
        RewardError: as above.
        PrismError: the data ran out, or the loss is not finite.
    """
    trainer.remove_callback(PrinterCallback)
    checkpoint = run.last_checkpoint()
    if checkpoint is not None:
        get_console().print(f"continuing from {checkpoint}", markup=False)
        restore(checkpoint)
    adapters_in_float32(trainer.model)
    started = time.monotonic()
    try:
        with suppress(AlreadyTrainedError):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (BudgetError, RewardError, TeacherError) as error:
        _keep_last_step(trainer, error)
        raise
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RichProgress):
                callback.progress.stop()  # an error or Ctrl-C must not print into a live display
    flat = next((one.reason for one in trainer.callback_handler.callbacks if isinstance(one, StopWhenFlat)), None)
    if flat is not None:
        run.update(stopped={"step": trainer.state.global_step, "why": flat})
        get_console().print(f"ended at step {trainer.state.global_step}: {flat}", markup=False, highlight=False)
    elif trainer.state.global_step < trainer.state.max_steps:
        raise PrismError(
            f"training ended at step {trainer.state.global_step} of {trainer.state.max_steps}",
            "the data gave no further batch; give more rows or fewer a step",
        )
    run.update(train_seconds=round(run.manifest.get("train_seconds", 0.0) + time.monotonic() - started, 1))
    if trainer.is_world_process_zero():
        _save_final(trainer, run, policy)


def _keep_last_step(trainer: Trainer, error: PrismError) -> None:
    """Saves what was trained before the teacher, the budget or a reward stopped training, and says so in the error."""
    (last,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, LastStep))
    if step := last.save(trainer):
        error.hint = f"{error.hint + '; ' if error.hint else ''}training is kept up to step {step}"


def _save_final(trainer: Trainer, run: Run, policy: Policy) -> None:
    """Writes the final model: whole, whatever was trained; a LoRA run's adapters stand beside it in adapter/."""
    best = trainer.state.best_model_checkpoint
    model = trainer.accelerator.unwrap_model(trainer.model)
    if best is not None:
        run.update(best={"checkpoint": Path(best).name, "metric": trainer.state.best_metric})
        trainer._load_best_model()
    if has_adapters(model):
        adapter = run.folder / ADAPTER
        save_adapter(model, adapter)
        # Adapters trained beside rounded weights go into the whole ones: nothing is gained by keeping the rounding.
        final = with_adapter(run, adapter) if in_four_bits(model) else policy.with_model(model.merge_and_unload())
    else:
        final = policy.with_model(model)
    final.save(run.model)
    (run.model / "README.md").write_text(model_card(run, policy.grammar.tags), encoding="utf-8")
