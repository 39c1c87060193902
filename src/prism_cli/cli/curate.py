"""`prism data curate`."""

from typing import Annotated, Literal

import typer
from rich import get_console

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.words import sort_words


def curate(
    words: options.Words = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Run whose policy is sampled; RUN@N for its checkpoint N."),
    ] = None,
    data: options.DataOption = None,
    samples: Annotated[int | None, typer.Option("--samples", "-k", metavar="K", help="Responses per prompt.")] = None,
    band: Annotated[
        tuple[float, float] | None,
        typer.Option("--band", metavar="LOW HIGH", help="Lowest and highest pass rate to keep, both included."),
    ] = None,
    keep: Annotated[
        Literal["band", "hard"] | None,
        typer.Option("--keep", help="`band`, for RL; `hard` for prompts never solved, for a teacher."),
    ] = None,
    output: options.OutputOption = None,
    seed: options.SeedOption = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; everything else goes to stderr.")
    ] = False,
    dry_run: options.DryRunOption = False,
    resume: options.ResumeOption = None,
) -> None:
    """Select prompts by how often a policy solves them: for `prism rl`, or the unsolved ones for a teacher.

    The set is DIR/data: rows, pictures and a card. Another --band or --keep on the same folder chooses anew from what
    was sampled. Without RECIPE it takes ./curate.yaml if there is one, else the defaults.
    """
    from prism_cli.recipes.identity import run_folder

    chosen = options.given(from_=from_, data=data, samples=samples, band=band, keep=keep, output=output, seed=seed)
    recipe = resolve("curate", sort_words(words), chosen)
    if json_:
        get_console().stderr = True
    conduct("curate", recipe, dry_run, resume)
    if json_ and not dry_run:
        typer.echo((run_folder("curate", recipe) / "summary.json").read_text(encoding="utf-8"))
