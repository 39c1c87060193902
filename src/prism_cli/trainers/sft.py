"""Supervised fine-tuning on TRL's SFTTrainer, with the loss of each source."""

from collections.abc import Callable
from typing import Any, cast

import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from prism_cli import processes
from prism_cli.models import Policy
from prism_cli.trainers.arguments import trl_config
from prism_cli.trainers.in_step import InStep
from prism_cli.trainers.setup import TrainerSetup


def sft_trainer(policy: Policy, setup: TrainerSetup) -> SFTTrainer:
    """A trainer that learns the completions of rows.

    Args:
        policy: The policy to train.
        setup: Arguments of SFTConfig; rows with prompt (messages), completion (text), images, and `source` if they are
            from several; what watches.
    """
    # Rows are never cut (TRL's default of 1024 would cut image tokens); over-long ones were refused before.
    config = trl_config(SFTConfig, {**setup.arguments, "max_length": None, "completion_only_loss": True})
    return SourceLossTrainer(
        model=policy.model,
        args=config,
        train_dataset=setup.train,
        eval_dataset=setup.held_out,
        processing_class=policy.processor,
        callbacks=list(setup.callbacks),
        peft_config=setup.lora,
    )


class SourceLossTrainer(InStep, SFTTrainer):
    """SFTTrainer that also logs the loss of each source's rows, a token: `sources/NAME/loss`, `eval_NAME_loss`."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        # TRL then takes the mean over the tokens of the full batch. A Qwen-VL's own loss can't, so by default it would
        # be the mean of micro-batches' means, and depend on how a batch is cut.
        self.model_accepts_loss_kwargs = True
        self.data_collator: Any = _Collator(self.data_collator)
        named = [data for data in (options["train_dataset"], options["eval_dataset"]) if isinstance(data, Dataset)]
        self.sources = sorted(
            {name for data in named for name in data.select_columns("source").unique("source") if name}
        )
        self._totals = {mode: torch.zeros(len(self.sources), 2, dtype=torch.float64) for mode in (True, False)}
        self._seen: Any = None
        cast(torch.nn.Module, self.model).register_forward_hook(self._see)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, adding up each source's loss."""
        sources = inputs.pop("source")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        totals = self._totals[self._training]
        for source, lost, tokens in zip(sources, *self._seen, strict=True):
            if source in self.sources:
                totals[self.sources.index(source)] += torch.tensor([lost, tokens])
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with each source's mean loss a token."""
        # They stay on the CPU: some accelerators have no float64.
        totals = torch.stack(processes.gather(self._totals[self._training])).sum(0).tolist()
        self._totals[self._training].zero_()
        name = "sources/{}/loss" if self._training else "eval_{}_loss"
        sums = zip(self.sources, totals, strict=True)
        means = {name.format(source): lost / tokens for source, (lost, tokens) in sums if tokens}
        super().log({**logs, **means}, start_time)

    def _see(self, module: torch.nn.Module, args: tuple, output: Any) -> None:
        """Keeps each row's summed loss and its tokens, (B,) each: TRL gives the batch's mean alone."""
        self._seen = (-output.log_probs.detach().sum(1)).tolist(), output.label_mask.sum(1).tolist()

    @property
    def _training(self) -> bool:
        return cast(torch.nn.Module, self.model).training


class _Collator:
    """TRL's collator for rows whose completion is a text, with the rows' sources beside."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        turns = [[{"role": "assistant", "content": row["completion"]}] for row in rows]
        batch = self.collate([{**row, "completion": completion} for row, completion in zip(rows, turns, strict=True)])
        return {**batch, "source": [row.get("source", "") for row in rows]}
