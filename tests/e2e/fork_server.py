"""A process that has imported everything and forks a child for each `prism` command it is told on stdin.

A command is one JSON line; the child's id is the answer. `{"wait": pid}` answers with its exit status. Imports cost
seconds, a fork milliseconds: this is what makes tests of killed runs affordable.
"""

import gc
import json
import os
import signal
import sys
from importlib import import_module
from pkgutil import iter_modules


def kill_at(place: str, call: int) -> None:
    """Makes the process kill itself when `module:attribute.path` is called for the n-th time, instead of calling it."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def become(order: dict) -> None:
    """Turns this child into the ordered command."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    for path, number in ((order["stdout"], 1), (order["stderr"], 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["prism", *order["arguments"]]
    if order["kill"]:
        kill_at(*order["kill"])
    from prism_cli.cli.app import app

    app(prog_name="prism")


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for room in ("stages", "assembly", "trainers", "evaluation", "report", "tiny_models"):
        for module in iter_modules(import_module(f"prism_cli.{room}").__path__, f"prism_cli.{room}."):
            import_module(module.name)
    # Children collect only what is their own, and don't copy the pages of everything else to look through it.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                return become(order)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
