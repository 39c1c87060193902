"""`prism eval`."""

from typing import Annotated

import typer

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.words import sort_words

RunsAndWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|RECIPE|KEY=VALUE",
        help="Run folders, RUN@N for the checkpoint N; a recipe file or the name of a shipped one; values that replace "
        "the recipe's. A folder with a run.json is a run.",
        show_default=False,
    ),
]


def eval_(
    words: RunsAndWords = None,
    data: options.DataOption = None,
    output: options.OutputOption = None,
    teacher_endpoint: options.EndpointOption = None,
    teacher_model: options.TeacherModelOption = None,
    max_teacher_calls: options.MaxCallsOption = None,
    max_teacher_usd: options.MaxUsdOption = None,
    teacher_preview: options.PreviewOption = None,
    attribute: Annotated[
        bool, typer.Option("--attribute", help="Find out by intervention why the greedy answers are wrong.")
    ] = False,
    seed: options.SeedOption = None,
    dry_run: options.DryRunOption = False,
    resume: options.ResumeOption = None,
) -> None:
    """Measure one or several runs on the same questions, with intervals, and their differences.

    Without RECIPE it takes ./eval.yaml if there is one, else the defaults.
    """
    sorted_words = sort_words(words, with_runs=True)
    chosen = options.given(
        runs=sorted_words.runs or None,
        data=data,
        output=output,
        teacher__endpoint=teacher_endpoint,
        teacher__model=teacher_model,
        teacher__max_calls=max_teacher_calls,
        teacher__max_usd=max_teacher_usd,
        seed=seed,
    )
    if attribute and not any(word.startswith("attribution=") for word in sorted_words.overrides):
        sorted_words.overrides.append("attribution=greedy")
    recipe = resolve("eval", sorted_words, chosen)
    conduct("eval", recipe, dry_run, resume, preview=teacher_preview)
