"""`prism plan`."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import get_console
from rich.table import Table
from rich.text import Text

from prism_cli.cli import options
from prism_cli.cli.words import sort_words
from prism_cli.errors import RecipeError

if TYPE_CHECKING:
    from prism_cli.planning.effort import Effort
    from prism_cli.stages.plan import StagePlan


def plan(
    words: options.Words = None,
    model: options.ModelOption = None,
    from_: options.FromOption = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory", metavar="GB", help="Memory of a GPU; default: that of the GPU here, else 80.", min=0.1
        ),
    ] = None,
    gpu_tflops: Annotated[
        float | None,
        typer.Option(
            "--gpu-tflops",
            metavar="N",
            help="Peak bfloat16 throughput of a GPU; default: by its name, else 989.",
            min=0.1,
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Estimate the memory, time and teacher calls of training, from config files alone.

    RECIPE is one of sft, warm-up, align, RL or a pipeline; without it ./pipeline.yaml. Where a step doesn't fit, the
    three settings that save most are printed. Exit code 1 when something doesn't fit.
    """
    from prism_cli.recipes.load import load_recipe
    from prism_cli.stages import plan as stage

    sorted_words = sort_words(words)
    name, file = which(sorted_words.recipe)
    chosen = options.given(from_=from_, model=model) if name != "run" else {}
    recipe = load_recipe(name, file, sorted_words.overrides, chosen)
    device = stage.here(gpu_memory, gpu_tflops)
    if name == "run":
        plans = stage.plan_pipeline(recipe, device, file.parent if file else Path())
    else:
        plans = [stage.plan_stage(name, recipe, device)]
    if json_:
        typer.echo(json.dumps([one.as_json() for one in plans], indent=2))
    else:
        for one in plans:
            _show(one)
    if not all(one.fits for one in plans):
        raise typer.Exit(1)


def which(named: str | None) -> tuple[str, Path | None]:
    """The stage and the file of a recipe that may be of any stage.

    Args:
        named: A file, a folder with a pipeline, a shipped name, or None for the pipeline here.

    Raises:
        RecipeError: nothing there, or a file whose name doesn't say its stage.
    """
    from prism_cli.recipes.sources import find_recipe, shipped, stage_of

    if named is None:
        return "run", find_recipe("run", None)
    file = Path(named) if Path(named).is_file() else shipped().get(named)
    if file is None:
        return "run", find_recipe("run", named)
    if (stage := stage_of(file)) is None:
        raise RecipeError(f"{file}: its name doesn't say its stage", "name it by it, such as align_small.yaml")
    return stage, file


def _show(plan: "StagePlan") -> None:
    from prism_cli.planning.job import GB
    from prism_cli.planning.memory import COMPONENTS, host_bytes

    console = get_console()
    world = plan.job.launch.world_size
    devices = "one GPU" if world == 1 else f"each of {world} GPUs"
    table = Table(title=f"{plan.step}: GB on {devices}", title_justify="left")
    table.add_column("")
    for phase in plan.phases:
        table.add_column(phase, justify="right")
    digits = 1 if plan.peak > 10 * GB else 3
    for name in (one for one in COMPONENTS if any(one in moment.parts for moment in plan.phases.values())):
        sizes = [moment.parts.get(name) for moment in plan.phases.values()]
        table.add_row(name, *("" if size is None else f"{size / GB:,.{digits}f}" for size in sizes))
    table.add_section()
    table.add_row("peak", *(f"{moment.total / GB:,.{digits}f}" for moment in plan.phases.values()), style="bold")
    console.print(table)
    for line in lines(plan):
        console.print(Text(line), highlight=False, soft_wrap=True)
    if host := host_bytes(plan.job):
        console.print(Text(f"main memory: {host / GB:,.0f} GB a process, for what is offloaded"), soft_wrap=True)
    console.print()


def lines(plan: "StagePlan") -> list[str]:
    """The plan as lines."""
    from prism_cli.planning import memory
    from prism_cli.planning.job import GB

    have, need = plan.job.device.memory / GB, plan.peak / GB
    texts = [f"memory: {need:,.1f} of {have:,.1f} GB: {'fits' if plan.fits else 'does not fit'}"]
    for saving in plan.savings:
        peak = memory.peak(saving.job) / GB
        texts.append(f"with {_quoted(saving.overrides)}: {peak:,.1f} GB{', fits' if peak <= have else ''}")
    if not plan.fits and not plan.savings:
        texts.append("no single setting saves much: shorten responses or prompts, or take a smaller model")
    generation = plan.job.generation
    vllm = plan.phases["generation"].parts.get("vLLM", 0) / GB if "generation" in plan.phases else 0
    if generation and generation.vllm and vllm > generation.vllm * have:
        texts.append(f"vLLM needs {vllm:,.1f} GB: generation.memory={math.ceil(100 * vllm / have) / 100:g}")
    if plan.effort is not None:
        texts.append(_time(plan.effort))
    return texts + [f"{what}: {detail}" for what, detail in plan.teacher]


def _quoted(overrides: tuple[str, ...]) -> str:
    return " ".join(f"'{one}'" if " " in one or "{" in one else one for one in overrides)


def _time(effort: "Effort") -> str:
    if sum(effort.step.values()) < 1:
        return "time: under a second a step by its arithmetic, so what is around it decides"
    spent = ", ".join(f"{name} {_long(seconds)}" for name, seconds in effort.step.items())
    whole = "" if effort.seconds is None else f"; {effort.steps:,} steps: {_long(effort.seconds)}"
    return f"time: about {spent} a step{whole} (estimate, within a factor of 3: docs/plan.md)"


def _long(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
