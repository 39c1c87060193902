"""`prism` as a user's shell runs it: a process with an exit code, two streams, and signals; started by forking."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    """How a command ended; `code` is negative for the signal that killed it."""

    code: int
    stdout: str
    stderr: str


class Command:
    """A command that runs. `pid` can be sent signals until `wait` is called."""

    def __init__(self, server: "ForkServer", arguments, cwd, env, kill):
        self._server = server
        self._streams = Path(tempfile.mkdtemp(dir=server.scratch))
        paths = {name: str(self._streams / name) for name in ("stdout", "stderr")}
        order = {"arguments": [str(a) for a in arguments], "cwd": str(cwd), "env": env or {}, "kill": kill, **paths}
        self.pid = server.ask(order)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return "\nState:\tZ" not in Path(f"/proc/{self.pid}/status").read_text()

    def output(self) -> str:
        """What it has printed on stdout so far."""
        return (self._streams / "stdout").read_text() if (self._streams / "stdout").exists() else ""

    def wait(self) -> Done:
        """Waits for its end."""
        code = self._server.ask({"wait": self.pid})
        return Done(code, *((self._streams / name).read_text() for name in ("stdout", "stderr")))


class ForkServer:
    """Starts commands; a context."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self.scratch = self._folder.name
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._folder.cleanup()

    def ask(self, order: dict) -> int:
        """Sends an order and gives the answer."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, *arguments, cwd, env=None, kill=None) -> Command:
        """Starts `prism ARGUMENTS…`.

        Args:
            arguments: The command line.
            cwd: Folder it runs in.
            env: Environment variables to add.
            kill: (`module:attribute`, n): the process kills itself with SIGKILL at the n-th call.
        """
        return Command(self, arguments, cwd, env, kill)

    def __call__(self, *arguments, cwd, env=None, kill=None) -> Done:
        """Runs `prism ARGUMENTS…` to its end."""
        return self.start(*arguments, cwd=cwd, env=env, kill=kill).wait()
