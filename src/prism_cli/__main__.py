"""`python -m prism_cli`, and the `prism` command."""

from prism_cli.cli.app import app
from prism_cli.stages import launched


def main() -> None:
    """Runs the command line."""
    if launched.by_prism():
        with launched.Working():
            app(prog_name="prism")
    else:
        app(prog_name="prism")


if __name__ == "__main__":
    main()
