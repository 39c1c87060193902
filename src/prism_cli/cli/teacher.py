"""`prism teacher serve`."""

from typing import Annotated, Literal

import typer
from rich.console import Console

teacher = typer.Typer(name="teacher", help="Teachers of our own.", no_args_is_help=True)


@teacher.callback()
def _group() -> None:
    """Serve a picture world's oracle as a teacher."""


@teacher.command()
def serve(
    world: Annotated[Literal["shapes"], typer.Option(help="Picture world whose pictures it reads.")] = "shapes",
    variant: Annotated[
        Literal["exact", "weak_perception", "weak_reasoning", "text_only"],
        typer.Option(help="Faultless, sees badly, reasons badly, or never sees the picture."),
    ] = "exact",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Variable whose value callers must send as the key.")
    ] = None,
    delay: Annotated[float, typer.Option(min=0, help="Seconds to wait before each answer.")] = 0.0,
) -> None:
    """Serve an OpenAI-compatible teacher on this machine until interrupted."""
    from prism_cli.stages import serve as stage

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
