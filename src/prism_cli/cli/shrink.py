"""`--shrink`: a command's recipe scaled down."""

from pathlib import Path
from typing import Any

from rich.console import Console


def scaled_down(stage: str, recipe: Any, write: bool, base: Path | None = None) -> Any:
    """The recipe scaled down; prints a line for each stage that says what changed.

    Args:
        stage: Its stage.
        recipe: The resolved recipe.
        write: Whether its models are written; a dry run writes nothing.
        base: Folder of a pipeline's file.

    Raises:
        RecipeError: see `stages.shrink`.
    """
    from prism_cli.stages import shrink

    small = shrink.scaled_down(stage, recipe, base)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for change in small.changes:
        console.print(f"scaled down: {change}")
    if write:
        shrink.write_models(small.models)
    return small.recipe
