"""A full discriminator on every process that trains it, and what that shares with a sharded one (`sharding`).

Both backends offer the same methods, and every process calls them in the same order.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prism_cli.discriminator.experts import AUTOCAST
from prism_cli.discriminator.inputs import ScoreInputs
from prism_cli.discriminator.model import Discriminator
from prism_cli.errors import CheckpointError
from prism_cli.processes import is_main, together, world_size

OPTIMIZER_FILE, TRAINED_FILE = "optimizer.pt", "trained.pt"
SHARDS_FILE = "shards.json"


class Scored(NamedTuple):
    """The result of one pass over a row.

    Attributes:
        scores: (R,) float32 without dropout, of the row's parts.
        dropped: (R,) float32 with dropout: for the loss.
        balance: (), load-balancing loss; None when it was not asked for.
    """

    scores: Tensor
    dropped: Tensor
    balance: Tensor | None


class Pass(nn.Module):
    """One pass over a row as one module, which is what an engine wraps.

    Args:
        discriminator: Reads the row.
        bf16: Compute the body in bfloat16, whatever its weights are.
    """

    def __init__(self, discriminator: Discriminator, bf16: bool):
        super().__init__()
        self.discriminator, self.bf16 = discriminator, bf16

    def forward(self, row: ScoreInputs, dropout: Tensor | None, balance: bool, look: bool = False) -> Scored:
        """Reads a row; `dropout` (R, H) are the factors of dropout, None for none."""
        with torch.autocast(row.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            hidden, balancing = self.discriminator.read(row, balance, look)
        if dropout is None:
            scores = self.discriminator.score(hidden)
            return Scored(scores, scores, balancing)
        scores, dropped = self.discriminator.score(torch.cat([hidden.detach(), hidden * dropout])).split(len(hidden))
        return Scored(scores, dropped, balancing)


class Replicas:
    """A full discriminator on every process; gradients are averaged before a step.

    Args:
        discriminator: Trained in place; the main process's weights are taken by all.
        optimizer: Of its weights.
        max_grad_norm: Gradients are scaled down to this norm.
        bf16: Compute in bfloat16 on these weights.

    Attributes:
        world: Processes that learn together.
    """

    def __init__(
        self, discriminator: Discriminator, optimizer: torch.optim.Optimizer, max_grad_norm: float, bf16: bool
    ):
        self.discriminator, self.optimizer, self.max_grad_norm = discriminator, optimizer, max_grad_norm
        self.world = world_size() if together() else 1
        if bf16 and discriminator.kind == "moe":
            discriminator.body.set_experts_implementation(AUTOCAST)
        self._pass = Pass(discriminator, bf16)
        self._weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if self.world > 1:
            for weight in discriminator.parameters():
                dist.broadcast(weight.data, 0)

    def agreed(self, rows: Sequence[int]) -> list[int]:
        """Rows that each chunk is read in; a process needs no other to read its own."""
        return list(rows)

    def read(self, row: ScoreInputs | None, dropout: Tensor | None, balance: bool) -> Scored:
        """One pass over a row."""
        assert row is not None, "only shards are read beside others"
        return self._pass(row, dropout, balance)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a loss's gradients; `last` before the step."""
        loss.backward()

    def step(self) -> float:
        """One step, unless the gradient's norm over all processes, which it gives, is not finite; then no gradients."""
        _average_gradients(self._weights, self.world)
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()  # the policy's update and generation have a use for their memory
        return norm

    def save_discriminator(self, folder: Path) -> None:
        """Writes a plain discriminator, from the main process."""
        if is_main():
            self.discriminator.save_pretrained(folder)

    def save(self, folder: Path, progress: dict[str, Any]) -> None:
        """Writes a discriminator with its optimiser."""
        self.save_discriminator(folder)
        if is_main():
            torch.save({"optimizer": self.optimizer.state_dict(), **progress}, folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> dict[str, Any]:
        """Continues from what `save` wrote, on any number of processes; gives the progress.

        Raises:
            CheckpointError: not written by `save` of this backend.
        """
        refuse_other(folder, None)
        if not (folder / OPTIMIZER_FILE).exists():
            raise CheckpointError(f"{folder}: {OPTIMIZER_FILE} is missing, so training can't continue from here")
        self.discriminator.load_state_dict(Discriminator.from_pretrained(folder).state_dict())
        return self._progress(torch.load(folder / OPTIMIZER_FILE, weights_only=True, map_location=self._device))

    def save_trained(self, folder: Path, progress: dict[str, Any]) -> None:
        """Writes what is trained, such as adapters, with its optimiser; the rest is not written."""
        if is_main():
            named = self.discriminator.named_parameters()
            weights = {name: weight.detach() for name, weight in named if weight.requires_grad}
            state = {"weights": weights, "optimizer": self.optimizer.state_dict(), **progress}
            torch.save(state, folder / TRAINED_FILE)

    def load_trained(self, folder: Path) -> dict[str, Any]:
        """Continues from what `save_trained` wrote; gives the progress.

        Raises:
            CheckpointError: not written by `save_trained` of this backend.
        """
        refuse_other(folder, None)
        state = torch.load(folder / TRAINED_FILE, weights_only=True, map_location=self._device)
        self.discriminator.load_state_dict(state.pop("weights"), strict=False)
        return self._progress(state)

    def close(self) -> None:
        """Nothing to let go of."""

    def _progress(self, state: dict[str, Any]) -> dict[str, Any]:
        self.optimizer.load_state_dict(state.pop("optimizer"))
        return state

    @property
    def _device(self) -> torch.device:
        return self.discriminator.device


def refuse_other(folder: Path, here: dict[str, int] | None) -> None:
    """Refuses a checkpoint whose weights lay otherwise on the processes."""
    path = folder / SHARDS_FILE
    there = json.loads(path.read_text()) if path.exists() else None
    if there != here:
        raise CheckpointError(
            f"{folder}: the discriminator was trained {_describe(there)}, and would be continued {_describe(here)}",
            "continue as it was begun, or start over with --fresh",
        )


def _describe(shards: dict[str, int] | None) -> str:
    if shards is None:
        return "without ZeRO"
    return f"with launch.zero={shards['zero']} on {shards['processes']} processes"


def _average_gradients(weights: Sequence[nn.Parameter], world: int) -> None:
    """Averages gradients over processes; a weight without one counts as zero, so that every process steps alike."""
    for weight in weights:
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if world > 1:
            dist.all_reduce(gradient)
            gradient /= world
        weight.grad = gradient
