"""`python -m prism_cli`, and the `prism` command."""

from prism_cli.cli.app import app
from prism_cli.launching import worker
from prism_cli.launching.allocator import expand_segments


def main() -> None:
    """Runs the command line."""
    expand_segments()
    if worker.by_prism():
        with worker.Working():
            app(prog_name="prism")
    else:
        app(prog_name="prism")


if __name__ == "__main__":
    main()
