"""`prism drift`."""

from typing import Annotated

import typer
from rich import get_console

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.eval import RunsAndWords
from prism_cli.cli.words import sort_words


def drift(
    words: RunsAndWords = None,
    data: options.DataOption = None,
    output: options.OutputOption = None,
    teacher_endpoint: options.EndpointOption = None,
    teacher_model: options.TeacherModelOption = None,
    teacher_store: Annotated[
        str | None,
        typer.Option(
            "--teacher-store",
            metavar="FILE",
            help="File of its stored answers; without an endpoint it must have all of them.",
        ),
    ] = None,
    max_teacher_calls: options.MaxCallsOption = None,
    max_teacher_usd: options.MaxUsdOption = None,
    teacher_preview: options.PreviewOption = None,
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", help="Responses per prompt and run.")] = None,
    seed: options.SeedOption = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")
    ] = False,
    dry_run: options.DryRunOption = False,
    resume: options.ResumeOption = None,
) -> None:
    """Measure each part's distance from the teacher: 0.5 is indistinguishable, 1 always distinguishable.

    Needs no discriminator: a simple text classifier separates policy and teacher. Without RECIPE it takes ./drift.yaml
    if there is one, else the defaults.
    """
    from prism_cli.recipes.identity import run_folder

    sorted_words = sort_words(words, with_runs=True)
    chosen = options.given(
        runs=sorted_words.runs or None,
        data=data,
        output=output,
        teacher__endpoint=teacher_endpoint,
        teacher__model=teacher_model,
        teacher__store=teacher_store,
        teacher__max_calls=max_teacher_calls,
        teacher__max_usd=max_teacher_usd,
        samples=samples,
        seed=seed,
    )
    recipe = resolve("drift", sorted_words, chosen)
    if json_:
        get_console().stderr = True
    conduct("drift", recipe, dry_run, resume, preview=teacher_preview)
    if json_ and not dry_run and teacher_preview is None:
        typer.echo((run_folder("drift", recipe) / "drift.json").read_text(encoding="utf-8"))
