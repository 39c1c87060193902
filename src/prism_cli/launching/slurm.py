"""The Slurm batch script of a command: it continues after its time is up."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from prism_cli.errors import RecipeError, Terminated
from prism_cli.launching.command import Launch
from prism_cli.runs.files import write_atomically

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
# Five minutes before the time is up Slurm signals prism to save a checkpoint and leave.
#SBATCH --signal=TERM@300

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


def write(path: Path, stage: str, launches: Iterable[Launch], words: Sequence[str]) -> None:
    """Writes the script.

    Args:
        path: Where.
        stage: The command, for the job's name.
        launches: The processes of every stage that the command runs.
        words: The command line, without `prism`.

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
    )
    try:
        write_atomically(path, text)
    except OSError as error:
        raise RecipeError(f"--sbatch {path}: can't be written: {error.strerror}", "name a file you may write") from None
