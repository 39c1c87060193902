"""Launch section: processes, nodes and sharding of a training stage."""

from typing import Literal

from pydantic import PositiveInt, model_validator

from prism_cli.recipes.section import Section


class LaunchSection(Section):
    """Training processes, one per device, started by accelerate and sharded by DeepSpeed ZeRO."""

    processes: PositiveInt = 1
    """Processes per node, one for each of its GPUs."""
    nodes: PositiveInt = 1
    """Nodes; start the same command on each (docs/launch.md)."""
    zero: Literal[2, 3] | None = None
    """DeepSpeed ZeRO stage for policy and discriminator: 2 shards gradients and optimiser states over all processes, 3
    also the weights. Null keeps a full copy in each process (DDP)."""
    offload: bool = False
    """Keep sharded optimiser states (with ZeRO-3 also the weights) in main memory: less GPU memory, slower."""

    @property
    def world_size(self) -> int:
        """Training processes over all nodes."""
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _offload_needs_shards(self):
        if self.offload and self.zero is None:
            raise ValueError("offload applies to sharded states: set zero to 2 or 3")
        return self
