"""The last complete step of a training that fails between two checkpoints, kept in a checkpoint of its own."""

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli import processes
from prism_cli.runs.references import COMPLETE


class LastStep(TrainerCallback):
    """Remembers the random state a step ends with, for a checkpoint that is written after the next one has begun."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remembers the random state."""
        self._random = _random_state()

    # A held-out evaluation samples, and a new epoch's data loader draws a seed.
    on_evaluate = on_epoch_begin = on_step_end

    def save(self, trainer: Trainer) -> int:
        """Writes a checkpoint of the last complete step unless it has one; gives the step. All processes call it.

        The step that failed must not have touched weights. What was not logged yet is logged first.

        Raises:
            PrismError: the loss of the last steps is not finite; no checkpoint is written.
        """
        step = trainer.state.global_step
        marker = Path(str(trainer.args.output_dir)) / f"checkpoint-{step}" / COMPLETE
        if not step or processes.from_main(marker.is_file):
            return step
        _set_random_state(self._random)
        model = cast(torch.nn.Module, trainer.model_wrapped).train()
        trainer.control.should_log = trainer.control.should_save = True
        trainer.control.should_evaluate = False
        trainer._maybe_log_save_evaluate(
            tr_loss=trainer._tr_loss,
            grad_norm=None,
            model=model,
            trial=None,
            epoch=trainer.state.epoch or 0.0,
            ignore_keys_for_eval=None,
            start_time=cast(float, None),  # transformers' own "nothing to say of speed"
        )
        return step


def _device() -> Any:
    """The module of the accelerator's random state, or None on a CPU."""
    return torch.get_device_module() if torch.accelerator.is_available() else None


def _random_state() -> tuple[Any, ...]:
    device = _device()
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), device and device.get_rng_state()


def _set_random_state(state: tuple[Any, ...]) -> None:
    python, numpy, cpu, accelerator = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if accelerator is not None:
        _device().set_rng_state(accelerator)
