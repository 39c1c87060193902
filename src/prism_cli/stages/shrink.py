"""`--shrink`: a recipe scaled down to a minute or two on a CPU, to see it run from end to end before it costs anything.

The architecture, LoRA, algorithm, discriminator, readout, advantage and optimiser stay; widths, steps, batches and
lengths become small; rows and teacher become those of the picture world, so that nothing is downloaded or paid for.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from prism_cli.assembly.response import grammar_of, instruction_of
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.model_configs import model_config, shipped_configs
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.pipelines import PipelineRecipe
from prism_cli.recipes.scaled_down import Models, changed, describe, scaled_down_values
from prism_cli.recipes.sections import ResponseSection
from prism_cli.recipes.stages import Recipe
from prism_cli.runs.references import SCALED_DOWN, resolve_model
from prism_cli.worlds import WORLD_BLOCKS, world

MODELS = Path("runs/scaled_down_models")
MAX_SMALL_WIDTH = 512


class SmallModel(NamedTuple):
    """A scaled-down model to be written before the stage runs.

    Attributes:
        folder: Where.
        large: The config of the model it stands for.
        tags: The blocks it learns to write.
    """

    folder: Path
    large: dict[str, Any]
    tags: tuple[str, ...]


R = TypeVar("R", bound=Recipe)


class ScaledDownRecipe(NamedTuple, Generic[R]):
    """A recipe that a laptop can run.

    Attributes:
        recipe: Of the same type as before.
        models: The models it names, which may have to be written.
        changes: A line for each stage: what was changed.
    """

    recipe: R
    models: list[SmallModel]
    changes: list[str]


def scaled_down(stage: str, recipe: R) -> ScaledDownRecipe[R]:
    """A stage's recipe with everything that makes it large scaled down.

    Args:
        stage: Its stage.
        recipe: The resolved recipe.

    Raises:
        RecipeError: a model without a config here; a large run to evaluate or sample.
    """
    folder, written = _folder(stage, recipe), {}
    values = scaled_down_values(recipe, _models(folder, written))
    small = changed(recipe, values | {"output": folder})
    return ScaledDownRecipe(small, list(written.values()), [describe(recipe, values)])


def scaled_down_pipeline(recipe: PipelineRecipe, base: Path) -> ScaledDownRecipe[PipelineRecipe]:
    """A pipeline's recipe with every step scaled down; `base` is the folder of its file.

    Raises:
        RecipeError: see `scaled_down`.
    """
    from prism_cli.recipes.steps import resolve_steps

    folder, written = _folder("run", recipe), {}
    models, steps, changes = _models(folder, written), [], []
    for step, resolved in resolve_steps(recipe.steps, base, Path(folder), recipe.seed):
        values = scaled_down_values(resolved, models)
        steps.append(step.model_copy(update={"set": {**step.set, **values}}))
        changes.append(f"{step.id or step.stage}: {describe(resolved, values)}")
    small = recipe.model_copy(update={"steps": tuple(steps), "output": folder})
    return ScaledDownRecipe(small, list(written.values()), changes)


def _folder(stage: str, recipe: Recipe) -> str:
    return str(run_folder(stage, recipe)) + ("" if recipe.output else SCALED_DOWN)


def _models(folder: str, written: dict[Path, SmallModel]) -> Models:
    # Steps of a pipeline start from earlier ones, which are small by then.
    return Models(
        lambda reference: Path(reference).is_relative_to(folder) or _is_small(reference),
        lambda reference, tags: _stand_in(reference, tags, written),
    )


def write_models(models: list[SmallModel]) -> None:
    """Writes the scaled-down models that are not there yet; a few seconds each."""
    from rich import get_console

    from prism_cli.assembly.run_folder import quiet_libraries
    from prism_cli.tiny_models.scaled_down import write_scaled_down

    quiet_libraries()
    words = vocabulary()
    for model in models:
        with get_console().status(f"making {model.folder}"):
            model.folder.parent.mkdir(parents=True, exist_ok=True)
            write_scaled_down(model.folder, model.large, words, model.tags)


def vocabulary() -> list[str]:
    """The vocabulary of all scaled-down models: words of the picture world, its blocks and the default instruction."""
    grammar = grammar_of(ResponseSection())
    words = (instruction_of(ResponseSection(), grammar) or "").split()
    marks = [mark for block in sorted(WORLD_BLOCKS) for mark in (f"<{block}>", f"</{block}>")]
    return sorted({*world("shapes").vocabulary, *words} - set(marks)) + marks


def _stand_in(reference: str, tags: tuple[str, ...], written: dict[Path, SmallModel]) -> str:
    """The folder of the scaled-down model that stands for a model or run; adds it to those to be written."""
    if _is_small(reference):
        return reference
    large = model_config(str(_model_folder(reference)))
    if large is None:
        raise RecipeError(
            f"--shrink needs the config.json of {reference}",
            f"it comes with prism for {', '.join(shipped_configs())}; for another model name a local folder",
        )
    made_of = json.dumps([large, tags, vocabulary()], sort_keys=True)
    folder = MODELS / f"{Path(reference).name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    written[folder] = SmallModel(folder, large, tags)
    return folder.as_posix()


def _is_small(reference: str) -> bool:
    """Whether a run's, a model's or a discriminator's folder holds a scaled-down model."""
    config = model_config(str(_model_folder(reference))) or {}
    return config.get("text_config", {}).get("hidden_size", MAX_SMALL_WIDTH + 1) <= MAX_SMALL_WIDTH


def _model_folder(reference: str) -> Path:
    try:
        return resolve_model(reference)[0]
    except CheckpointError:
        return Path(reference)
