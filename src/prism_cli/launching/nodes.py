"""Nodes: this one's number among several, and the address where the first one waits for the others."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from prism_cli.errors import RecipeError

DOCS = "docs/launch.md"


class Place(NamedTuple):
    """This node among those that train together.

    Attributes:
        node: Its number, from 0.
        address: The first node's name.
        port: Where the first node waits; 0 takes a free one.
    """

    node: int
    address: str
    port: int


def place(nodes: int, environ: Mapping[str, str] = os.environ) -> Place:
    """This node's place, by the variables of Slurm (a MASTER_PORT wins), else by MASTER_ADDR, MASTER_PORT and
    NODE_RANK.

    Args:
        nodes: `launch.nodes`.
        environ: The environment's variables.

    Raises:
        RecipeError: nothing says which node this is, or there are not so many.
    """
    if int(environ.get("SLURM_STEP_NUM_NODES", "1")) > 1 or (nodes > 1 and "SLURM_JOB_ID" in environ):
        return _in_slurm(nodes, environ)
    if nodes == 1:
        return Place(0, "127.0.0.1", 0)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not environ.get(name)]
    if missing:
        raise RecipeError(
            f"launch.nodes is {nodes}, and nothing says which node this is ({', '.join(missing)} not set)",
            f"run the same command on each node, with srun in a Slurm job or with these variables set ({DOCS})",
        )
    node = _number(environ, "NODE_RANK")
    if node >= nodes:
        raise RecipeError(
            f"NODE_RANK is {node}, and launch.nodes is {nodes}", f"nodes are numbered from 0; set launch.nodes ({DOCS})"
        )
    return Place(node, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT"))


def _in_slurm(nodes: int, environ: Mapping[str, str]) -> Place:
    if "SLURM_STEP_NUM_NODES" not in environ:
        raise RecipeError(
            f"launch.nodes is {nodes}, and in this Slurm job the command runs on one node only",
            "start it with srun, one task a node: srun --ntasks-per-node=1 prism … (--sbatch FILE writes such a job)",
        )
    given, tasks = _number(environ, "SLURM_STEP_NUM_NODES"), _number(environ, "SLURM_STEP_NUM_TASKS", 1)
    if given != nodes:
        raise RecipeError(
            f"launch.nodes is {nodes}, and Slurm runs this command on {given}",
            f"set launch.nodes={given}, or give srun --nodes={nodes}",
        )
    if tasks != given:
        raise RecipeError(
            f"Slurm starts {tasks} tasks on {given} nodes, and prism starts each node's processes itself",
            "give srun --ntasks-per-node=1",
        )
    # One job's steps come one after another: they may share a port. Below 32768 no system hands them out itself.
    usual = 20000 + _number(environ, "SLURM_JOB_ID") % 10000
    names = environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]
    return Place(_number(environ, "SLURM_NODEID"), first_host(names), _number(environ, "MASTER_PORT", usual))


def first_host(names: str) -> str:
    """The first of Slurm's list of hosts: `node01` of `node[01-03,7],login`."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", names)
    assert first is not None, "an empty match is one"
    return re.sub(r"\[(\w*)[^\]]*\]", r"\1", first[0])


def _number(environ: Mapping[str, str], name: str, usual: int | None = None) -> int:
    text = environ.get(name, "" if usual is None else str(usual))
    if not text.isdigit():
        raise RecipeError(f"{name} is {text!r}, no number", f"see {DOCS}")
    return int(text)
