"""`python -m prism_cli`, and the `prism` command."""

from prism_cli.cli.app import app


def main() -> None:
    """Runs the command line."""
    app(prog_name="prism")


if __name__ == "__main__":
    main()
