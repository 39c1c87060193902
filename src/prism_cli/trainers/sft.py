"""Supervised fine-tuning on TRL's SFTTrainer: what a stage's plain settings become there."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from prism_cli.trainers.arguments import trl_config


def sft_trainer(
    model: Any,
    processor: Any,
    train: Dataset,
    held_out: Dataset | None,
    arguments: dict[str, Any],
    callbacks: Sequence[TrainerCallback],
    lora: Any = None,
) -> SFTTrainer:
    """A trainer that learns the completions of `prompt`/`completion`/`images` rows.

    Args:
        model: The policy.
        processor: Its processor.
        train: Columns prompt and completion (messages) and images.
        held_out: The same columns, or None.
        arguments: Keyword arguments of SFTConfig.
        callbacks: Watchers.
        lora: A peft config, or None to train all weights.
    """
    # Rows are never cut (TRL's default of 1024 would cut image tokens); over-long ones were refused before.
    config = trl_config(SFTConfig, {**arguments, "max_length": None, "completion_only_loss": True})
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        callbacks=list(callbacks),
        peft_config=lora,
    )
