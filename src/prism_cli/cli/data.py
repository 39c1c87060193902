"""`prism data check` and `prism data show`; `prism data curate` joins them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prism_cli.cli.curate import curate
from prism_cli.cli.data_report import print_report, report_values

data = typer.Typer(name="data", help="Check and show data, select prompts for RL.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A file, a folder or a hub id.", show_default=False)]
Format = Annotated[
    Literal["auto", "conversational", "sharegpt", "verl", "pairs", "plain"],
    typer.Option(help="Format of the rows; auto recognises it by their columns."),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|RUN", help="Model whose processor counts tokens and renders prompts; default: that of --from."
    ),
]
Urls = Annotated[
    list[str] | None, typer.Option("--allow-url", metavar="HOST", help="Download pictures from this host; repeatable.")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="RUN", help="Run whose response format and system prompt apply; else the defaults."),
]


@data.callback()
def _group() -> None:
    """Check and show data before training on it or sending it to a teacher; select prompts for RL."""


@data.command()
def check(
    source: Source,
    needs: Annotated[
        Literal["sft", "align", "rl", "eval"] | None,
        typer.Option("--for", help="Stage to check for: sft needs demonstrations, rl and eval need answers."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Evaluation set that must not overlap with it.")
    ] = None,
    tokens: Tokens = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Maximum tokens of a prompt with its pictures; for sft, also with its response."
        ),
    ] = None,
    format: Format = "auto",
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Check the first N rows.")] = None,
    allow_url: Urls = None,
    from_: From = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the usable rows, without duplicates, to DIR, and the reasons for leaving out the others.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Report all problems of a data set at once. Exit code 1 if a row can't be used."""
    from prism_cli.stages import data_check as stage

    with _progress(stage.expected_rows(source, limit, against)) as progress:
        report = stage.check(
            source,
            format=format,
            limit=limit,
            allow_urls=allow_url or (),
            needs=needs,
            tokens=tokens,
            max_tokens=max_tokens,
            against=against,
            run=from_,
            fix=fix,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(report_values(report), indent=2))
    else:
        print_report(report)
    if fix is not None:
        from prism_cli.data.fix import write_clean

        path, kept = write_clean(report, fix, limit)
        typer.echo(f"kept {kept} rows in {path}, {report.rows - kept} in {path.with_name('rejected.jsonl')}", err=True)
    if report.unusable:
        raise typer.Exit(1)


@data.command()
def show(
    source: Source,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="Number of rows, from the first.")] = 8,
    tokens: Tokens = None,
    format: Format = "auto",
    allow_url: Urls = None,
    from_: From = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("data_show.html"),
) -> None:
    """Write the first rows as an HTML page: pictures, texts, and the prompt as the model reads it."""
    from prism_cli.stages import data_show as stage

    row_format = stage.show(source, rows, output, format=format, allow_urls=allow_url or (), tokens=tokens, run=from_)
    typer.echo(f"format {row_format}")
    typer.echo(f"page   {output}")


data.command()(curate)


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where it disturbs no output."""
    columns = (TextColumn("rows"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda done: bar.update(task, completed=done)
