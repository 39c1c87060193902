"""The arguments and options that commands share, each said once."""

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
        help="A recipe file or the name of a shipped one; then values that replace the recipe's, such as "
        "optimizer.learning_rate=2e-6.",
        show_default=False,
        autocompletion=_complete_recipe,
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model to start from: a folder or hub id.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Rows to use: a file, a folder or a hub id.")]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="RUN", help="Finished run to start from, RUN@N for its checkpoint N.")
]
OutputOption = Annotated[str | None, typer.Option("--output", metavar="DIR", help="Folder of this run.")]
EndpointOption = Annotated[
    str | None, typer.Option("--teacher-endpoint", metavar="URL", help="The teacher's OpenAI-compatible base URL.")
]
TeacherModelOption = Annotated[
    str | None, typer.Option("--teacher-model", metavar="NAME", help="The model's name at the teacher's endpoint.")
]
MaxCallsOption = Annotated[
    int | None, typer.Option("--max-teacher-calls", metavar="N", help="Stop (exit code 3) before asking more often.")
]
MaxUsdOption = Annotated[
    float | None,
    typer.Option("--max-teacher-usd", metavar="USD", help="Stop (exit code 3) before spending more; needs a price."),
]
PreviewOption = Annotated[
    int | None,
    typer.Option(
        "--teacher-preview", metavar="N", min=1, help="Print the first N requests the teacher would get; send none."
    ),
]
MaxStepsOption = Annotated[int | None, typer.Option("--max-steps", metavar="N", help="Optimiser steps.")]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check, print the whole recipe and the plan, and write nothing.")
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
        "--sbatch", metavar="FILE", help="Check, write a Slurm batch script that runs this command, and run nothing."
    ),
]
ResumeOption = Annotated[
    bool | None,
    typer.Option(
        "--resume/--fresh",
        help="Insist that there is a run to continue, or delete it and start over. Neither: continue if there is one.",
        show_default=False,
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """Recipe key → value of the options that were given, under the names of the recipe's keys.

    Args:
        options: Option values; `from_` stands for `from`, `__` for a dot; None was not given.
    """
    values = {key.rstrip("_").replace("__", "."): value for key, value in options.items() if value is not None}
    for key, kind in (("model", "pretrained"), ("data", "file")):
        if key in values:
            values[key] = {"type": kind, "path": values[key]}
    return values
