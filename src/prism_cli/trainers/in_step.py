"""Waits over gloo where processes fall out of step: behind them no tensors' collective waits for long.

A collective of NCCL that others join late spins on its GPU, and gives up after `processes.COLLECTIVE`; the waits here
cost nothing and last as long as it takes.
"""

from typing import Any

from prism_cli import processes


class InStep:
    """For a class before a transformers Trainer: all processes go on together once the main one has written weights."""

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """The trainer's; the main process alone writes, while the others would go on to save the optimiser."""
        super().save_model(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        processes.barrier()


class RolloutsInStep(InStep):
    """Also once each process has generated, which takes as long as its longest response."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        generated = super()._generate_single_turn(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        processes.barrier()
        return generated
