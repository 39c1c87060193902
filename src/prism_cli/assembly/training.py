"""What SFT, align and RL do alike around their trainers: arguments, callbacks, resume, the final model and its card."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rich import get_console
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from prism_cli import processes
from prism_cli.adapters import adapters_in_float32, has_adapters, in_four_bits, save_adapter
from prism_cli.assembly.out_of_memory import memory_watch
from prism_cli.assembly.policy import start_policy, with_adapter
from prism_cli.assembly.tracking import left_to_transformers, trackers
from prism_cli.data.sources import is_local_name
from prism_cli.errors import BudgetError, PrismError, RewardError, TeacherError
from prism_cli.models import Policy
from prism_cli.progress import say
from prism_cli.publishing.model_card import model_card
from prism_cli.recipes.stages import Stage, TrainingStage
from prism_cli.runs.folder import Run
from prism_cli.trainers.arguments import AdamW, Schedule, launch_arguments, shared_arguments
from prism_cli.trainers.callbacks import (
    AlreadyTrainedError,
    CompleteCheckpoints,
    GracefulShutdown,
    MetricsLog,
    NoExtraStep,
    RichProgress,
    Shards,
    StopOnNonFinite,
    refuse_other_shards,
)
from prism_cli.trainers.drift_stop import StopWhenFlat
from prism_cli.trainers.last_step import LastStep
from prism_cli.trainers.sharded import keep_eyes_open, trained_elsewhere, whole_weights

ADAPTER = "adapter"
Watcher = TypeVar("Watcher", bound=TrainerCallback)


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
    extra = {
        **launch_arguments(recipe.launch.zero, recipe.launch.offload),
        **extra,
        **left_to_transformers(recipe.trainer),
    }
    return shared_arguments(run.folder / "checkpoints", recipe.seed, schedule, adamw, extra)


def callbacks(
    recipe: TrainingStage,
    run: Run,
    policy: Policy,
    stage: str,
    shown: dict[str, str],
    savers: Sequence[Callable[[Path], None]] = (),
) -> list[TrainerCallback]:
    """The watchers of a training stage; `savers` add to each checkpoint, on every process."""
    settings = [policy.save_response_settings] if processes.is_main() else []
    return [
        NoExtraStep(),
        GracefulShutdown(get_console(), recipe.trainer.get("num_iterations", 1)),  # first: others see what it asks for
        StopOnNonFinite(),
        *memory_watch(run.manifest["stage"], recipe, run, policy),  # before what writes the log
        MetricsLog(run.folder / "metrics.jsonl"),
        RichProgress(stage, shown, get_console()),
        CompleteCheckpoints([*settings, *savers], recipe.checkpoint.keep, _shards(recipe)),
        LastStep(),
        *trackers(recipe, run),
    ]


def _shards(recipe: TrainingStage) -> Shards:
    return Shards(recipe.launch.world_size, recipe.launch.zero)


def start(recipe: Stage) -> Policy:
    """The policy that a stage trains; on several processes it reads text as it reads pictures."""
    policy = start_policy(recipe)
    keep_eyes_open(policy.model)
    return policy


def seed(recipe: TrainingStage) -> None:
    """Seeds what is random in building a trainer (adapters)."""
    set_seed(recipe.seed)


def train(
    trainer: Trainer, run: Run, policy: Policy, restore: Callable[[Path], None] = lambda checkpoint: None
) -> None:
    """Trains to the end, from the last complete checkpoint if there is one, and writes the final model.

    All processes call it. Ctrl-C and SIGTERM end it after a step, with a checkpoint of that step.

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
        CheckpointError: the last checkpoint is of another number of processes, and can't be cut anew.
        KeyboardInterrupt: training was ended by a signal.
    """
    trainer.remove_callback(PrinterCallback)
    asking, completing = _callback(trainer, GracefulShutdown), _callback(trainer, CompleteCheckpoints)
    checkpoint = run.last_checkpoint()
    if checkpoint is not None:
        refuse_other_shards(checkpoint, completing.shards)
        say(f"continuing from {checkpoint}")
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
        asking.let_go()
        _callback(trainer, RichProgress).progress.stop()  # an error or Ctrl-C must not print into a live display
    if asking.asked is not None:
        raise asking.asked
    flat = next((one.reason for one in trainer.callback_handler.callbacks if isinstance(one, StopWhenFlat)), None)
    if flat is not None:
        run.update(stopped={"step": trainer.state.global_step, "why": flat})
        say(f"ended at step {trainer.state.global_step}: {flat}")
    elif trainer.state.global_step < trainer.state.max_steps:
        raise PrismError(
            f"training ended at step {trainer.state.global_step} of {trainer.state.max_steps}",
            "the data gave no further batch; give more rows or fewer a step",
        )
    run.update(train_seconds=round(run.manifest.get("train_seconds", 0.0) + time.monotonic() - started, 1))
    _save_final(trainer, run, policy)


def _callback(trainer: Trainer, kind: type[Watcher]) -> Watcher:
    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, kind))


def _keep_last_step(trainer: Trainer, error: PrismError) -> None:
    """Saves what was trained before the teacher, the budget or a reward stopped training, and says so in the error."""
    if step := _callback(trainer, LastStep).save(trainer):
        error.add_advice(f"training is kept up to step {step}")


def _save_final(trainer: Trainer, run: Run, policy: Policy) -> None:
    """Writes the final model: whole, whatever was trained; a LoRA run's adapters stand beside it in adapter/."""
    best = trainer.state.best_model_checkpoint
    if best is not None:
        run.update(best={"checkpoint": Path(best).name, "metric": trainer.state.best_metric})
        trainer._load_best_model()
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    engine: Any = trainer.model_wrapped
    sharded = _callback(trainer, CompleteCheckpoints).shards.zero == 3
    if has_adapters(model):
        with whole_weights(weight for weight in model.parameters() if weight.requires_grad and sharded):
            processes.from_main(lambda: save_adapter(model, run.folder / ADAPTER))
        # From here on models are loaded whole again.
        trained_elsewhere()
        processes.from_main(lambda: _write(_with_final_adapter(model, sharded, run, policy), run))
    else:
        weights: Any = trainer.accelerator.get_state_dict(engine) if sharded else None
        trained_elsewhere()
        processes.from_main(lambda: _write(policy.with_model(model), run, weights))


def _with_final_adapter(model: Any, sharded: bool, run: Run, policy: Policy) -> Policy:
    """The policy with what it learned merged in."""
    # Adapters trained beside rounded weights go into the whole ones: nothing is gained by keeping the rounding. Beside
    # sharded ones there are none to go into here.
    if sharded or in_four_bits(model):
        return with_adapter(run, run.folder / ADAPTER)
    return policy.with_model(model.merge_and_unload())


def _write(final: Policy, run: Run, weights: dict[str, Any] | None = None) -> None:
    """Writes the model with its card; `weights` in place of its own, which are shards."""
    if weights is None:
        final.save(run.model)
    else:
        final.model.save_pretrained(run.model, state_dict=weights)
        final.processor.save_pretrained(run.model)
        final.save_response_settings(run.model)
    (run.model / "README.md").write_text(model_card(run, final.grammar.tags, is_local_name), encoding="utf-8")
