"""The command that starts the processes of a stage."""

import shlex
from collections.abc import Sequence
from typing import Literal, NamedTuple

from prism_cli import processes
from prism_cli.errors import RecipeError
from prism_cli.launching import nodes
from prism_cli.launching.nodes import Place

# Shell variables that say which node of several this is, as `nodes.place` reads them.
NODE_VARIABLES = ("$NODE_RANK", "$MASTER_ADDR", "$MASTER_PORT")


class Launch(NamedTuple):
    """The processes of a stage.

    Attributes:
        processes: A node, one for each of its GPUs.
        nodes: How many nodes.
        zero: Stage of DeepSpeed ZeRO, or None for a full copy in each process.
        offload: Sharded states lie in main memory.
    """

    processes: int = 1
    nodes: int = 1
    zero: Literal[2, 3] | None = None
    offload: bool = False

    @property
    def world_size(self) -> int:
        """Processes over all nodes."""
        return self.processes * self.nodes

    def describe(self) -> str:
        """`2 nodes × 8, DeepSpeed ZeRO-3 with offload`."""
        count = f"{self.nodes} nodes × {self.processes}" if self.nodes > 1 else str(self.processes)
        shards = f", DeepSpeed ZeRO-{self.zero}" if self.zero else ""
        return f"{count}{shards}{' with offload' if self.offload else ''}"


def check_machine(launch: Launch) -> str:
    """The processes as this machine will start them: `8, a GPU each`.

    Raises:
        RecipeError: more processes than GPUs, or no DeepSpeed.
    """
    if launch.zero is not None:
        processes.refuse_without_deepspeed()
    gpus = _gpus()
    if gpus and launch.processes > gpus:
        raise RecipeError(
            f"launch.processes is {launch.processes}, and this machine has {gpus} GPU{'s' if gpus > 1 else ''}",
            f"set launch.processes={gpus}; nodes are counted in launch.nodes",
        )
    return launch.describe() + (", a GPU each" if gpus else ", on the CPU")


def command(words: Sequence[str], launch: Launch, place: Place | None = None) -> list[str]:
    """The command that starts the processes of this node.

    Args:
        words: What each of them is to do: a command of prism, without `prism`.
        launch: How many.
        place: This node; None leaves its number and the first one's address to shell variables.
    """
    node, address, port = place or (NODE_VARIABLES if launch.nodes > 1 else nodes.place(1, {}))
    several = [
        *("--num_machines", str(launch.nodes), "--machine_rank", str(node), "--same_network"),
        *("--main_process_ip", str(address)),
    ]
    return [
        *("accelerate", "launch"),
        *(["--multi_gpu"] if launch.world_size > 1 else []),
        *("--num_processes", str(launch.world_size)),
        *(several if launch.nodes > 1 else ("--num_machines", "1")),
        *("--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--module", "prism_cli", *words),
    ]


def shown(words: Sequence[str], launch: Launch) -> str:
    """That command as a line for a shell."""
    line = shlex.join(command(words, launch))
    for name in NODE_VARIABLES:
        line = line.replace(f"'{name}'", name)
    return line


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
