"""`prism teacher`: serve one, check one, show stored answers."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prism_cli.cli import options
from prism_cli.cli.words import sort_words
from prism_cli.progress import say

if TYPE_CHECKING:
    from prism_cli.stages.teacher_check import Checkup
    from prism_cli.stages.teacher_log import Log

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

teacher = typer.Typer(name="teacher", help="Serve a teacher, check one, show stored answers.", no_args_is_help=True)


@teacher.command()
def serve(
    world: Annotated[Literal["shapes"], typer.Option(help="Picture world whose pictures it reads.")] = "shapes",
    variant: Annotated[
        Literal["exact", "weak_perception", "weak_reasoning", "text_only"],
        typer.Option(help="Quality: no errors, errors in perception, errors in reasoning, or no picture."),
    ] = "exact",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the key that callers must send.")
    ] = None,
    delay: Annotated[float, typer.Option(min=0, help="Seconds to wait before each answer.")] = 0.0,
) -> None:
    """Serve an OpenAI-compatible teacher on this machine until interrupted."""
    from prism_cli.stages import teacher_serve as stage

    console = Console(highlight=False, soft_wrap=True)

    def announce(url: str) -> None:
        console.print(f"serving [bold]{world}[/] ({variant}) at [bold]{url}[/]")
        console.print(f"use it:  prism align --teacher-endpoint {url}")
        console.print("Ctrl-C stops it")

    try:
        stage.run(world, variant, port, announce, api_key_env, delay)
    except KeyboardInterrupt:
        console.print("stopped")
        raise typer.Exit(130) from None


@teacher.command()
def check(
    words: options.Words = None,
    teacher_endpoint: options.EndpointOption = None,
    teacher_model: options.TeacherModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test a teacher on a few pictures: is it reachable, does it see, does it keep the format, what does a call cost.

    Exit code 1 if it can't teach. It asks again every time, whatever answers are kept. RECIPE is read as an align
    recipe unless its name says otherwise.
    """
    from prism_cli.recipes.load import load_recipe
    from prism_cli.recipes.sources import stage_of
    from prism_cli.stages import teacher_check

    sorted_words = sort_words(words)
    named = stage_of(Path(sorted_words.recipe)) if sorted_words.recipe else None
    stage = named if named in ("sft", "eval", "collect") else "align"
    chosen = options.given(teacher__endpoint=teacher_endpoint, teacher__model=teacher_model)
    checkup = teacher_check.run(stage, load_recipe(stage, sorted_words.recipe, sorted_words.overrides, chosen))
    if as_json:
        typer.echo(json.dumps(checkup.as_dict(), indent=2))
    else:
        get_console().print(_checkup_table(checkup))
    if not checkup.passed:
        raise typer.Exit(1)


@teacher.command()
def log(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Answer file (a recipe's teacher.store).")
    ] = "runs/teacher_answers.sqlite",
    count: Annotated[int, typer.Option("-n", min=0, help="Number of newest calls to show.")] = 20,
    as_json: JsonOption = False,
    export: Annotated[
        str | None,
        typer.Option(metavar="OUT.jsonl", help="Write the answers as rows with prompt and completion; no pictures."),
    ] = None,
) -> None:
    """Show stored answers: their number, tokens and cost by teacher, and the newest calls."""
    from prism_cli.stages import teacher_log

    if export is not None:
        rows = teacher_log.export(store, export)
        say(f"{rows:,} answers written to {export}, without their pictures")
        return
    calls = teacher_log.read(store, count)
    if as_json:
        plain = {"totals": [one._asdict() for one in calls.totals], "last": [one._asdict() for one in calls.last]}
        typer.echo(json.dumps(plain, indent=2))
        return
    for table in _log_tables(calls):
        get_console().print(table)


def _checkup_table(checkup: "Checkup") -> Table:
    result = checkup.result
    pairs = f"{result.seen} of {result.pairs} pairs answered right on both sides"
    verdict = "yes" if checkup.passed else "can't be told" if result.silent else "NO"
    sees = (
        ("sees pictures", f"{verdict}: {pairs}")
        if checkup.modality == "image"
        else ("reasons from captions", f"{verdict}: {pairs}")
    )
    unknown = "not reported"
    lines = [
        ("reachable", f"yes: {checkup.endpoint}"),
        ("model", checkup.model),
        sees,
        ("keeps the form", f"{result.well_formed} of {result.asked} answers"),
        ("seconds a call", unknown if result.seconds is None else f"{result.seconds:.2f}"),
        (
            "tokens a call",
            unknown
            if result.prompt_tokens is None
            else f"{result.prompt_tokens:.0f} read, {result.completion_tokens:.0f} written",
        ),
        ("dollars a call", "no price given" if checkup.usd is None else f"${checkup.usd:.5f}"),
    ]
    lines += [("no answer", reason) for reason in sorted(set(result.failed))]
    wrong = [f"{answered!r}, right is {expected!r}" for expected, answered in result.answers if answered != expected]
    lines += [("answered", text) for text in ([] if checkup.passed else wrong[:3])]
    return _two_columns("prism teacher check", lines)


def _two_columns(title: str, lines: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for what, detail in lines:
        table.add_row(Text(what), Text(detail))
    return table


def _log_tables(log: "Log") -> list[Table]:
    from prism_cli.stages.teacher_log import question, unusable

    totals = Table("teacher", "answers", "unusable", "tokens read", "written", "dollars", "from", "to")
    for one in log.totals:
        name = one.teacher if one.teacher == one.model else f"{one.teacher} ({one.model})"
        bad = ", ".join(f"{count} {reason}" for reason, count in unusable(one.finishes).items()) or "0"
        cost = "–" if one.usd is None else f"{one.usd:,.4f}"
        tokens = f"{one.prompt_tokens:,}", f"{one.completion_tokens:,}"
        _add(totals, name, f"{one.calls:,}", bad, *tokens, cost, _time(one.first, "%m-%d"), _time(one.last, "%m-%d"))
    last = Table(title=f"the last {len(log.last)} calls", title_justify="left")
    # Texts get what is left: rich would shrink the short columns to nothing before them.
    left = max(get_console().width - 64, 24)
    widths = {"when": 11, "teacher": 12, "row": 14, "ended": 8, "question": left // 3, "answer": left - left // 3}
    for column, most in widths.items():
        last.add_column(column, no_wrap=True, overflow="ellipsis", max_width=most)
    for call in log.last:
        texts = (" ".join(text.split())[:200] for text in (question(call), call.text))
        _add(last, _time(call.created, "%m-%d %H:%M"), call.teacher, call.row, call.finish, *texts)
    return [totals, last] if log.last else [totals]


def _add(table: Table, *cells: Any) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _time(seconds: float, form: str) -> str:
    return datetime.fromtimestamp(seconds).strftime(form)
