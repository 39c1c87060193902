"""The Slurm batch script of a command: it continues after its time is up."""

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from prism_cli.errors import RecipeError, Terminated
from prism_cli.launching.command import Launch
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import COMPLETE

# A step of an 8 B model and the 200 GB of its checkpoint, where neither was measured.
GRACE_SECONDS = 1800
LEAST_SECONDS = 300
# The next step or save may take so much longer than those measured.
MARGIN = 2

SCRIPT = """\
#!/bin/bash
# Add what your cluster asks for (partition, account, modules), set the time, and hand it in: sbatch {name}
#SBATCH --job-name=prism-{stage}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={processes}
#SBATCH --cpus-per-task={cores}
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# So many seconds before the time is up Slurm signals prism to end its step, save a checkpoint and leave: {why}.
#SBATCH --signal=TERM@{grace}

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# On every node the same; the run folder must lie on a disk that all nodes share.
srun --kill-on-bad-exit=0 {command}
code=$?
# {terminated}: it left on that signal. The job goes back into the queue and continues from its checkpoint.
if [ "$code" -eq {terminated} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


class Grace(NamedTuple):
    """How long before the end of its time a job is signalled.

    Attributes:
        seconds: Whole minutes.
        why: What they follow from.
    """

    seconds: int = GRACE_SECONDS
    why: str = "no step or save was measured yet"


def grace(folder: Path) -> Grace:
    """What the longest step and save so far ask for.

    Args:
        folder: The command's run folder, with a pipeline's steps below it; it need not exist.
    """
    measured = [(0.0, 0.0)]
    for marker in folder.glob(f"**/checkpoints/*/{COMPLETE}"):
        seconds = json.loads(marker.read_text(encoding="utf-8"))
        measured.append((seconds.get("step_seconds", 0.0), seconds.get("save_seconds", 0.0)))
    step, save = map(max, zip(*measured, strict=True))
    if not step + save:
        return Grace()
    needed = max(LEAST_SECONDS, MARGIN * (step + save))
    return Grace(60 * math.ceil(needed / 60), f"a step takes {step:.0f} s, a save {save:.0f} s")


def write(
    path: Path, stage: str, launches: Iterable[Launch], words: Sequence[str], notice: Grace | None = None
) -> None:
    """Writes the script.

    Args:
        path: Where.
        stage: The command, for the job's name.
        launches: The processes of every stage that the command runs.
        words: The command line, without `prism`.
        notice: When it is signalled; left out, as where nothing was measured.

    Raises:
        RecipeError: a file is there already, or the folder isn't.
    """
    if path.exists():
        raise RecipeError(f"--sbatch {path}: the file is there already", "name another, or remove it first")
    launches = list(launches)
    processes = max(launch.processes for launch in launches)
    text = SCRIPT.format(
        name=shlex.quote(str(path)),
        stage=stage,
        nodes=max(launch.nodes for launch in launches),
        processes=processes,
        cores=8 * processes,
        command=shlex.join(["prism", *words]),
        terminated=Terminated.exit_code,
        grace=(notice or Grace()).seconds,
        why=(notice or Grace()).why,
    )
    try:
        write_atomically(path, text)
    except OSError as error:
        raise RecipeError(f"--sbatch {path}: can't be written: {error.strerror}", "name a file you may write") from None
