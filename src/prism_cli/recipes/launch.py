"""On how many processes a stage trains, and what is sharded over them."""

from typing import Literal

from pydantic import PositiveInt, model_validator

from prism_cli.recipes.section import Section


class LaunchSection(Section):
    """Where a stage trains. One process a device; accelerate starts them, DeepSpeed ZeRO shards."""

    processes: PositiveInt = 1
    """Processes a node, one for each of its GPUs."""
    nodes: PositiveInt = 1
    """Nodes; the same command is started on each (docs/launch.md)."""
    zero: Literal[2, 3] | None = None
    """DeepSpeed ZeRO: 2 shards gradients and optimiser states over all processes, 3 the weights too; of policy and
    discriminator. Null keeps a whole copy in each process (DDP)."""
    offload: bool = False
    """Sharded optimiser states, and under ZeRO-3 weights, lie in main memory: slower, for less GPU memory."""

    @property
    def world_size(self) -> int:
        """Training processes over all nodes."""
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _offload_needs_shards(self):
        if self.offload and self.zero is None:
            raise ValueError("offload moves sharded states: give zero: 2 or zero: 3")
        return self
