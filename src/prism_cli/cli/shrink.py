"""`--shrink`: a command's recipe scaled down."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

if TYPE_CHECKING:
    from prism_cli.recipes.pipelines import PipelineRecipe
    from prism_cli.recipes.stages import Recipe
    from prism_cli.stages.shrink import ScaledDownRecipe

R = TypeVar("R", bound="Recipe")


def scaled_down(stage: str, recipe: R, write: bool) -> R:
    """A stage's recipe scaled down; prints a line that says what changed.

    Args:
        stage: Its stage.
        recipe: The resolved recipe.
        write: Whether its models are written; a dry run writes nothing.

    Raises:
        RecipeError: see `stages.shrink`.
    """
    from prism_cli.stages import shrink

    return _written(shrink.scaled_down(stage, recipe), write)


def scaled_down_pipeline(recipe: "PipelineRecipe", base: Path, write: bool) -> "PipelineRecipe":
    """A pipeline's recipe scaled down, as `scaled_down`; `base` is the folder of its file."""
    from prism_cli.stages import shrink

    return _written(shrink.scaled_down_pipeline(recipe, base), write)


def _written(small: "ScaledDownRecipe[R]", write: bool) -> R:
    from prism_cli.stages import shrink

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for change in small.changes:
        console.print(f"scaled down: {change}")
    if write:
        shrink.write_models(small.models)
    return small.recipe
