"""A training from its start or its last checkpoint to the final model."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer

from prism_cli import processes
from prism_cli.adapters import adapters_in_float32, has_adapters, in_four_bits, save_adapter
from prism_cli.data.sources import is_local_name
from prism_cli.errors import BudgetError, PrismError, RewardError, TeacherError
from prism_cli.models import Policy
from prism_cli.progress import say
from prism_cli.publishing.model_card import model_card
from prism_cli.runs.folder import Run
from prism_cli.trainers.callbacks import Callbacks
from prism_cli.trainers.checkpoints import AlreadyTrainedError, refuse_other_shards
from prism_cli.trainers.sharded import full_weights, trained_elsewhere

ADAPTER = "adapter"
# Adapters of a folder → the policy that the run started from with these merged in.
Merge = Callable[[Path], Policy]


def train(trainer: Trainer, callbacks: Callbacks, run: Run, policy: Policy, merge: Merge) -> None:
    """Trains to the end, from the last complete checkpoint if there is one, and writes the final model.

    All processes call it. Ctrl-C and SIGTERM end it after a step, with a checkpoint of that step.

    Args:
        trainer: Built from the policy.
        callbacks: The trainer's.
        run: The run's folder.
        policy: Its processor and settings go with the model.
        merge: Used where the trained weights were sharded or rounded.

    Raises:
        TeacherError: it failed; the last complete step is kept in a checkpoint.
        BudgetError: as above.
        RewardError: as above.
        PrismError: the data ran out, or the loss is not finite.
        CheckpointError: the last checkpoint is of another number of processes, and can't be cut anew.
        KeyboardInterrupt: training was ended by a signal.
    """
    trainer.remove_callback(PrinterCallback)
    checkpoint = run.last_checkpoint()
    if checkpoint is not None:
        refuse_other_shards(checkpoint, callbacks.checkpoints.shards)
        say(f"continuing from {checkpoint}")
    adapters_in_float32(trainer.model)
    started = time.monotonic()
    try:
        with suppress(AlreadyTrainedError):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (BudgetError, RewardError, TeacherError) as error:
        if step := callbacks.last_step.save(trainer):
            error.add_advice(f"training is kept up to step {step}")
        raise
    finally:
        callbacks.shutdown.restore()
        callbacks.progress.close()  # an error or Ctrl-C must not print into a live display
    if callbacks.shutdown.interrupt is not None:
        raise callbacks.shutdown.interrupt
    _refuse_early_end(trainer, callbacks, run)
    run.update(train_seconds=round(run.manifest.get("train_seconds", 0.0) + time.monotonic() - started, 1))
    _save_final(trainer, callbacks.checkpoints.shards.zero == 3, run, policy, merge)


def _refuse_early_end(trainer: Trainer, callbacks: Callbacks, run: Run) -> None:
    """Tells an end that was wanted, which the run's manifest keeps, from one for want of data."""
    step, last = trainer.state.global_step, trainer.state.max_steps
    flat = callbacks.early_stop.reason if callbacks.early_stop is not None else None
    if flat is not None:
        run.update(stopped={"step": step, "why": flat})
        say(f"ended at step {step}: {flat}")
    elif step < last:
        raise PrismError(
            f"training ended at step {step} of {last}",
            "the data gave no further batch; give more rows or fewer a step",
        )


def _save_final(trainer: Trainer, sharded: bool, run: Run, policy: Policy, merge: Merge) -> None:
    """Writes the final, unsharded model, whatever was trained; a LoRA run's adapters stand beside it in adapter/."""
    best = trainer.state.best_model_checkpoint
    if best is not None:
        run.update(best={"checkpoint": Path(best).name, "metric": trainer.state.best_metric})
        trainer._load_best_model()
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    engine: Any = trainer.model_wrapped
    if has_adapters(model):
        with full_weights(weight for weight in model.parameters() if weight.requires_grad and sharded):
            processes.from_main(lambda: save_adapter(model, run.folder / ADAPTER))
        # From here on models are loaded unsharded again.
        trained_elsewhere()
        # Adapters trained beside rounded weights go into the full ones: nothing is gained by keeping the rounding.
        # Beside sharded ones there are none to go into here.
        anew = sharded or in_four_bits(model)
        processes.from_main(
            lambda: _write(merge(run.folder / ADAPTER) if anew else policy.with_model(model.merge_and_unload()), run)
        )
    else:
        weights: Any = trainer.accelerator.get_state_dict(engine) if sharded else None
        trained_elsewhere()
        processes.from_main(lambda: _write(policy.with_model(model), run, weights))


def _write(final: Policy, run: Run, weights: dict[str, Any] | None = None) -> None:
    """Writes the model with its card; `weights` in place of its own, which are shards."""
    if weights is None:
        final.save(run.model)
    else:
        final.model.save_pretrained(run.model, state_dict=weights)
        final.processor.save_pretrained(run.model)
        final.save_response_settings(run.model)
    (run.model / "README.md").write_text(model_card(run, final.grammar.tags, is_local_name), encoding="utf-8")
