"""`prism eval`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import get_console, reconfigure

from prism_cli.cli import options
from prism_cli.cli.conduct import conduct, resolve
from prism_cli.cli.shrink import scaled_down
from prism_cli.cli.words import Words, sort_words

RunsAndWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|RECIPE|KEY=VALUE",
        help="Run folders, RUN@N for the checkpoint N; a recipe file or the name of a shipped one; values that replace "
        "the recipe's. A folder with a run.json is a run; that of an earlier evaluation stands for its recipe.",
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
        bool, typer.Option("--attribute", help="Find the causes of wrong greedy answers, by intervention.")
    ] = False,
    benchmarks: Annotated[
        str | None,
        typer.Option(
            "--benchmarks", metavar="TASKS", help="Published benchmarks through lmms-eval, separated by commas."
        ),
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(
            "--power",
            metavar="POINTS",
            min=0.01,
            help="Also estimate how many questions are needed to detect a difference of POINTS.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON on stdout and nothing else.")
    ] = False,
    seed: options.SeedOption = None,
    dry_run: options.DryRunOption = False,
    shrink: options.ShrinkOption = False,
    resume: options.ResumeOption = None,
) -> None:
    """Measure one or several runs on the same questions, with intervals, and their differences.

    Without RECIPE it takes ./eval.yaml if there is one, else the defaults. An earlier evaluation's folder continues it:
    with more runs, more samples, or more to measure, such as --attribute.
    """
    from prism_cli.recipes.identity import run_folder

    if as_json:
        reconfigure(stderr=True)
    sorted_words, earlier = _earlier(sort_words(words, with_runs=True))
    chosen = options.given(
        runs=sorted_words.runs or None,
        data=data,
        output=output or earlier,
        benchmarks__tasks=None if benchmarks is None else benchmarks.split(","),
        teacher__endpoint=teacher_endpoint,
        teacher__model=teacher_model,
        teacher__max_calls=max_teacher_calls,
        teacher__max_usd=max_teacher_usd,
        seed=seed,
    )
    if attribute and not any(word.startswith("attribution=") for word in sorted_words.overrides):
        sorted_words.overrides.append("attribution=greedy")
    recipe = resolve("eval", sorted_words, chosen)
    if shrink:
        recipe = scaled_down("eval", recipe, write=not dry_run and teacher_preview is None)
    conduct("eval", recipe, dry_run, resume, preview=teacher_preview)
    if dry_run or teacher_preview is not None:
        return
    from prism_cli.stages.eval_summary import SUMMARY, power_table

    folder = run_folder("eval", recipe)
    if power is not None:
        get_console().print(power_table(folder, power))
    if as_json:
        typer.echo((folder / SUMMARY).read_text(encoding="utf-8"))


def _earlier(words: Words) -> tuple[Words, str | None]:
    """The words with an earlier evaluation among the runs replaced by its recipe and its runs; and its folder."""
    from prism_cli.runs.references import read_manifest

    manifests: dict[str, Any] = {run: read_manifest(Path(run.partition("@")[0])) for run in words.runs}
    folder = next((run for run, manifest in manifests.items() if manifest["stage"] == "eval"), None)
    if folder is None or words.recipe is not None:
        return words, None
    more = [run for run in words.runs if run != folder]
    recipe, runs = str(Path(folder) / "recipe.yaml"), manifests[folder]["recipe"]["runs"]
    return words._replace(
        recipe=recipe, runs=[*runs, *(run for run in more if run not in runs)] if more else []
    ), folder
