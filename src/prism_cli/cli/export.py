"""`prism export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from prism_cli.cli.conduct import print_plan


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, or RUN@N for its checkpoint N.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Folder to write; default: exports/<run>."),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option("--dtype", help="Type of the weights; default: the run's.", show_default=False),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Also upload it; private if new. Needs $HF_TOKEN."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print the plan, and write nothing.")] = False,
) -> None:
    """Write a run's model as a plain Hugging Face folder for transformers, vLLM and the hub.

    Adapters are merged. With it go processor, chat template, generation settings and a model card that tells lineage,
    data, teacher, metrics and recipe, but no path, address or key of this machine. Nothing is ever overwritten.
    """
    from prism_cli.stages import export as stage

    wanted = stage.Export(run, output, dtype, push_to_hub)
    if dry_run:
        print_plan("export", stage.check(wanted))
    else:
        stage.run(wanted)
