"""What all tests share: one thread, no network names, and a started `prism` that forks in milliseconds."""

import gc
import io
import os
import signal

# A shell starts background jobs deaf to Ctrl-C, and what they start would be too.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
from filelock import FileLock

import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)


def pytest_collection_finish():
    """What importing left is never garbage: a collection that looks through it takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads that wait for each other cost more than matrices of this size."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prism():
    """Runs `prism` commands in processes of their own; see `tests.e2e.processes`."""
    from tests.e2e.processes import ForkServer

    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def trained(prism, tmp_path_factory):
    """Folder of a finished `prism sft` run whose policy reads pictures well: made once, copied by nobody, read only."""
    # Two test processes share it: the first trains, the other waits.
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
    folder.mkdir(exist_ok=True)
    length = ["eval_data=null", "max_steps=350", "checkpoint.every=350", "checkpoint.evaluate_every=null"]
    with FileLock(folder / "lock"):
        if not (folder / "oracle.parquet").exists():
            write_demonstrations(folder / "oracle.parquet")
        done = prism("sft", "tiny", "--data", "oracle.parquet", *length, "--output", str(folder / "sft"), cwd=folder)
    assert done.code == 0, done.stderr
    return folder / "sft"


def write_demonstrations(path):
    """The oracle's answers to 4000 pictures; with the noisy public demonstrations it takes twice as long to see."""
    from prism_cli.assembly.response import grammar_of
    from prism_cli.data.collected import DemonstrationsFile
    from prism_cli.recipes.sections import ResponseSection
    from prism_cli.worlds import world

    shapes, grammar = world("shapes"), grammar_of(ResponseSection())
    with DemonstrationsFile(path) as file:
        for example in shapes.examples("train", 4000, 0):
            text = grammar.render(shapes.oracle(example.question, example.image))
            example.image.save(png := io.BytesIO(), "PNG")
            row = {"prompt": [{"role": "user", "content": example.question}], "answers": [example.answer]}
            file.add(example.id, {**row, "images": [{"bytes": png.getvalue()}]}, text)
