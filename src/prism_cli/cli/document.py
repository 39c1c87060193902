"""docs/cli.md, generated from the commands themselves.

`python -m prism_cli.cli.document --write` writes it, `--check` fails when it is not current.
"""

import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from prism_cli.cli.app import app
from prism_cli.recipes.document import write_or_check

PAGE = Path("docs/cli.md")
INTRODUCTION = """# Command line

<!-- Written by `python -m prism_cli.cli.document --write` from src/prism_cli/cli. Do not edit. -->

The words after a command, in any order:

- `KEY=VALUE` overrides a value of the recipe: `optimizer.learning_rate=2e-6`, values in YAML. On `prism run` a step's
  value is `STEP.KEY=VALUE`.
- `RUN`, for `prism eval` and `prism drift`: a folder with a run.json, `RUN@N` for its checkpoint N, or `RUN@STEP` for a
  step of a pipeline.
- `RECIPE` is any other word, and any existing file: a recipe file, a folder with the command's file (`align.yaml`), or
  the name of a shipped recipe (`tiny`). Without it the command takes its file from the current folder if there is one.

Rerunning a command on the same folder continues its run. Exit codes: 0 ok, 1 failed, 2 wrong recipe or usage, 3 a
budget was reached, 130 interrupted, 143 ended by SIGTERM.

"""


def page() -> str:
    """The whole page as Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, name="prism")
    return INTRODUCTION + text.strip() + "\n"


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), sys.argv[1:]))
