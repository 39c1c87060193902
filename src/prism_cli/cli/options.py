"""Arguments and options shared by several commands."""

import glob
from pathlib import Path
from typing import Annotated, Any

import typer


def _complete_recipe(ctx: typer.Context, incomplete: str) -> list[str]:
    """Shipped recipes of the command, then folders and YAML files."""
    from prism_cli.recipes.sources import file_name, shipped

    stem = Path(file_name(ctx.info_name or "")).stem
    names = [name.removesuffix(f"/{stem}") for name in shipped() if name.endswith(f"/{stem}")]
    paths = [f"{p}/" if Path(p).is_dir() else p for p in sorted(glob.glob(f"{incomplete}*"))]
    return [name for name in names if name.startswith(incomplete)] + [p for p in paths if p.endswith(("/", ".yaml"))]


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="Recipe file or name of a shipped recipe; then values that replace the recipe's, such as "
        "optimizer.learning_rate=2e-6.",
        show_default=False,
        autocompletion=_complete_recipe,
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model to start from: a folder or hub id.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Data: a file, a folder or a hub id.")]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="RUN", help="Finished run to start from; RUN@N for its checkpoint N.")
]
OutputOption = Annotated[str | None, typer.Option("--output", metavar="DIR", help="Run folder.")]
EndpointOption = Annotated[
    str | None, typer.Option("--teacher-endpoint", metavar="URL", help="Base URL of an OpenAI-compatible teacher.")
]
TeacherModelOption = Annotated[
    str | None, typer.Option("--teacher-model", metavar="NAME", help="Name of the teacher's model at the endpoint.")
]
MaxCallsOption = Annotated[
    int | None,
    typer.Option("--max-teacher-calls", metavar="N", help="Maximum requests; stops with exit code 3 before more."),
]
MaxUsdOption = Annotated[
    float | None,
    typer.Option(
        "--max-teacher-usd",
        metavar="USD",
        help="Maximum cost; stops with exit code 3 before more. Needs teacher.price.",
    ),
]
PreviewOption = Annotated[
    int | None,
    typer.Option(
        "--teacher-preview", metavar="N", min=1, help="Print the first N requests to the teacher and send none."
    ),
]
MaxStepsOption = Annotated[int | None, typer.Option("--max-steps", metavar="N", help="Optimiser steps.")]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check, print the full recipe and the plan, and write nothing.")
]
ShrinkOption = Annotated[
    bool,
    typer.Option(
        "--shrink",
        help="Scale the recipe down: a small random model of the same kind, rows and teacher of the picture world, two "
        "steps. Downloads nothing; takes a minute or two on a CPU.",
    ),
]
SbatchOption = Annotated[
    Path | None,
    typer.Option(
        "--sbatch", metavar="FILE", help="Check and write a Slurm batch script for this command; run nothing."
    ),
]
ResumeOption = Annotated[
    bool | None,
    typer.Option(
        "--resume/--fresh",
        help="--resume fails without a run to continue; --fresh deletes the run and starts over. Default: continue if "
        "there is a run.",
        show_default=False,
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """Recipe key → value of the given options.

    Args:
        options: Option values by recipe key, with `from_` for `from` and `__` for a dot; None for options not given.
    """
    values = {key.rstrip("_").replace("__", "."): value for key, value in options.items() if value is not None}
    for key, kind in (("model", "pretrained"), ("data", "file")):
        if key in values:
            values[key] = {"type": kind, "path": values[key]}
    return values
