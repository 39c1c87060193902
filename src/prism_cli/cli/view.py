"""`prism view`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def view(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run's, pipeline's or study's folder, or its name in runs/; default: the newest."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1 for a run in progress; 0 takes a free one.")
    ] = 0,
) -> None:
    """Open a run's report page, which follows a run in progress.

    The page of a finished run is a file. That of a run that is going is served on 127.0.0.1 until Ctrl-C.
    """
    from prism_cli.stages import view as stage

    console = Console(highlight=False, soft_wrap=True, markup=False)
    folder = stage.find(run)
    if not stage.is_going(folder):
        path = stage.page(folder)
        console.print(str(path))
        if browser:
            _open(path.resolve().as_uri())
        return

    def announce(url: str) -> None:
        console.print(f"following {folder} at {url}")
        if "SSH_CONNECTION" in os.environ:
            place = url.split("/")[2]
            console.print(f"from your own machine: ssh -L {place.split(':')[1]}:{place} …, then the same address")
        console.print("Ctrl-C ends it")
        if browser:
            _open(url)

    try:
        stage.serve(folder, port, announce)
    except KeyboardInterrupt:
        console.print(f"ended; the run goes on, and its page will be {Path(folder) / 'report.html'}")


def _open(address: str) -> None:
    """Opens it where there is a screen; a text browser would take over the terminal."""
    if sys.platform.startswith("linux") and not ({"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys()):
        return
    import webbrowser

    webbrowser.open(address)
