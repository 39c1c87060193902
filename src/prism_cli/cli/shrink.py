"""`--shrink`: the recipe a command goes on with when it is to run small."""

from pathlib import Path
from typing import Any

from rich.console import Console


def shrunk(stage: str, recipe: Any, write: bool, base: Path | None = None) -> Any:
    """The recipe made small, what changed said in a line a stage, its thin models written.

    Args:
        stage: Its stage.
        recipe: The resolved recipe.
        write: Whether its models are to be written; a dry run writes nothing.
        base: Folder of a pipeline's file.

    Raises:
        RecipeError: see `stages.shrink`.
    """
    from prism_cli.stages import shrink

    small = shrink.shrunken(stage, recipe, base)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for change in small.changes:
        console.print(f"shrunken: {change}")
    if write:
        shrink.write_models(small.models)
    return small.recipe
