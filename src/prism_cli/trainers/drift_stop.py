"""Ends alignment once it no longer brings the policy nearer to the teacher."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from transformers import TrainerCallback

from prism_cli.trainers.checkpoints import AlreadyTrainedError


class DriftStop(NamedTuple):
    """When alignment ends before its last step.

    Attributes:
        min_steps: Not before.
        every: Steps between measurements.
        patience: Measurements without a further fall that end it.
        delta: A fall is more than this.
    """

    min_steps: int
    every: int
    patience: int
    delta: float


class Watched(Protocol):
    """Who measures drift."""

    flat: bool
    stop: DriftStop | None


class StopWhenFlat(TrainerCallback):
    """Ends training once drift stopped shrinking, with a checkpoint of that step.

    Args:
        watched: Who measures.

    Raises:
        AlreadyTrainedError: from `train()`, when the checkpoint is of the step at which it ended.
    """

    def __init__(self, watched: Watched):
        self.watched = watched

    @property
    def reason(self) -> str | None:
        """Why training ended, once it did."""
        stop = self.watched.stop
        if not self.watched.flat or stop is None:
            return None
        return (
            f"no part's drift fell by more than {stop.delta} in {stop.patience} measurements, {stop.every} steps each"
        )

    def on_train_begin(self, args, state, control, **kwargs):
        if self.watched.flat:
            raise AlreadyTrainedError

    def on_step_end(self, args, state, control, **kwargs):
        if self.watched.flat:
            control.should_training_stop = control.should_save = control.should_log = True


def is_flat(measured: Sequence[dict[str, float]], patience: int, delta: float) -> bool:
    """Whether no part fell more than `delta` below its lowest earlier value in the last `patience` measurements.

    Args:
        measured: Part → drift, oldest first.
        patience: Measurements to look at.
        delta: Smallest fall that counts.
    """
    if len(measured) <= patience:
        return False
    return all(
        min(values[:-patience]) - min(values[-patience:]) <= delta
        for values in ([one[part] for one in measured] for part in measured[-1])
    )
