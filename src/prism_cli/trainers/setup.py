"""The setup of a trainer: what SFT, align and RL hand to TRL alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset, IterableDataset
from transformers import TrainerCallback

from prism_cli.trainers.rollout_log import RolloutLog

if TYPE_CHECKING:  # it imports vLLM's parts of TRL
    from prism_cli.trainers.vllm_rollouts import VLLMRollouts


class TrainerSetup(NamedTuple):
    """Arguments, rows and callbacks of a trainer.

    Attributes:
        arguments: Keyword arguments of TRL's config (SFTConfig or GRPOConfig).
        train: Rows, with the columns that the trainer names.
        held_out: Rows of the same shape for the evaluation, or None.
        callbacks: What watches the training.
        lora: A peft config, or None to train all weights.
        rollout_log: Keeps rollouts, or None; align and RL.
        vllm: How vLLM makes the rollouts, or None for transformers; align and RL.
    """

    arguments: dict[str, Any]
    train: Dataset | IterableDataset
    held_out: Dataset | None = None
    callbacks: Sequence[TrainerCallback] = ()
    lora: Any = None
    rollout_log: RolloutLog | None = None
    vllm: "VLLMRollouts | None" = None
