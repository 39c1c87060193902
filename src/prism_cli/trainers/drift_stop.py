"""Early stopping of alignment: once no part's drift from the teacher falls any more."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli.trainers.checkpoints import AlreadyTrainedError


class DriftStop(NamedTuple):
    """The condition that ends alignment before its last step.

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


class DriftMeasure(Protocol):
    """A learner that measures drift.

    Attributes:
        flat: Whether drift stopped shrinking.
        stop: When training ends, or None.
    """

    flat: bool
    stop: DriftStop | None


class StopWhenFlat(TrainerCallback):
    """Ends training once drift stopped shrinking, with a checkpoint of that step.

    Args:
        measure: Says whether drift is flat.

    Raises:
        AlreadyTrainedError: from `train()`, when the checkpoint is of the step at which it ended.
    """

    def __init__(self, measure: DriftMeasure):
        self.measure = measure

    @property
    def reason(self) -> str | None:
        """Why training ended, once it did."""
        stop = self.measure.stop
        if not self.measure.flat or stop is None:
            return None
        return (
            f"no part's drift fell by more than {stop.delta} in {stop.patience} measurements, {stop.every} steps each"
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends a run that continues from the step at which it ended."""
        if self.measure.flat:
            raise AlreadyTrainedError

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends the training after this step, with a checkpoint."""
        if self.measure.flat:
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
