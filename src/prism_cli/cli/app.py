"""The `prism` command: its subcommands, and the one place that prints errors and decides exit codes."""

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from prism_cli import __version__
from prism_cli.cli.align import align
from prism_cli.cli.collect import collect
from prism_cli.cli.compare import compare
from prism_cli.cli.data import data
from prism_cli.cli.discriminator import discriminator
from prism_cli.cli.doctor import doctor
from prism_cli.cli.drift import drift
from prism_cli.cli.eval import eval_
from prism_cli.cli.export import export
from prism_cli.cli.plan import plan
from prism_cli.cli.recipes import recipes
from prism_cli.cli.rl import rl
from prism_cli.cli.run import run
from prism_cli.cli.sft import sft
from prism_cli.cli.teacher import teacher
from prism_cli.cli.view import view
from prism_cli.errors import PrismError
from prism_cli.launching import worker


class ErrorPrintingGroup(TyperGroup):
    """Turns errors with advice into two lines on stderr and their exit code. Bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except PrismError as error:
            if worker.should_print(error):
                from prism_cli.recipes.load import FLAGS

                hint = error.advice(FLAGS)
                _say(("error:", "bold red", str(error)), *([("hint:", "bold cyan", hint)] if hint else []))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            # Objects that were half made when it came complain as they go.
            sys.unraisablehook = lambda _: None
            if worker.should_print(interrupt):
                _say(("interrupted:", "bold yellow", "run the same command again to continue"))
            raise typer.Exit(worker.exit_code(interrupt)) from None


def _say(*lines: tuple[str, str, str]) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for word, style, text in lines:
        separator = "\n" if "\n" in text else " "
        console.print(word, style=style, end=separator)
        console.print(text)


app = typer.Typer(
    name="prism",
    cls=ErrorPrintingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: prism run tiny (minutes on a laptop). Exit codes: 0 ok, 1 failed, 2 wrong recipe or usage, "
    "3 a budget was reached, 130 interrupted, 143 ended by SIGTERM.",
)
app.command()(sft)
app.command()(align)
app.command()(rl)
app.command(name="eval")(eval_)
app.command()(collect)
app.command()(drift)
app.command()(run)
app.command()(plan)
app.command()(compare)
app.command()(view)
app.command()(export)
app.add_typer(data)
app.add_typer(teacher)
app.add_typer(discriminator)
app.add_typer(recipes)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prism {__version__}")
        raise typer.Exit()


@app.callback()
def prism(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Post-train a vision-language model: SFT, alignment to a black-box teacher, RL."""
