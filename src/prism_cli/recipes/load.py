"""Loading a recipe: its file, then layers of changes, validated once, with all problems and their places."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prism_cli.errors import RecipeError
from prism_cli.recipes.changes import Change, Places, apply, parse_override, put_into_step
from prism_cli.recipes.flags import FLAGS
from prism_cli.recipes.pipelines import PipelineStep
from prism_cli.recipes.problems import validation_problems
from prism_cli.recipes.sources import KeyPath, Source, file_name, find_recipe, read
from prism_cli.recipes.stages import RECIPES
from prism_cli.recipes.trl_options import option_problems

# An option for one of these makes the teacher an endpoint; a cap alone is for the teacher there is.
ENDPOINT_KEYS = ("teacher.endpoint", "teacher.model", "teacher.store")


def load_recipe(
    stage: str,
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A stage's recipe: its type from `recipes.stages.RECIPES`, checked and frozen.

    Args:
        stage: One of `sources.STAGES`.
        source: A file, a folder that holds <stage>.yaml, a shipped name, or None: ./<stage>.yaml if there is one, else
            the defaults.
        overrides: `key.path=value`, values in YAML; they win over the file. On a pipeline also `STEP.key.path=value`.
        options: Dotted key → plain value; they win over overrides. One of ENDPOINT_KEYS makes the teacher an endpoint.

    Raises:
        RecipeError: with every problem, one a line, each with its place.
    """
    written, unread = [], []
    for text in overrides:
        try:
            written.append(parse_override(text))
        except ValueError as error:
            unread.append(str(error))
    chosen = [Change(key, value, FLAGS[key]) for key, value in (options or {}).items()]
    chosen += [Change("teacher.type", "openai", FLAGS[key]) for key in ENDPOINT_KEYS if key in (options or {})]
    return _load(stage, find_recipe(stage, source), [[*written, *chosen]], unread)


def load_step(step: PipelineStep, base: Path, options: Mapping[str, Any] | None = None) -> Any:
    """The recipe of one step of a pipeline, with the step's `set` applied.

    Args:
        step: The step.
        base: Folder of the pipeline's file; the step's recipe is relative to it.
        options: Dotted key → value that the pipeline decides (`from`, `output`, `seed`).

    Raises:
        RecipeError: as `load_recipe`; problems in `set` name the step.
    """
    name = f"step {step.id or step.stage!r}"
    set_by_step = [Change(key, value, f"{name}, set") for key, value in step.set.items()]
    decided = [Change(key, value, name) for key, value in (options or {}).items()]
    return _load(step.stage, find_recipe(step.stage, base / step.recipe), [set_by_step, decided])


def _load(stage: str, path: Path | None, layers: Iterable[Sequence[Change]], unread: Sequence[str] = ()) -> Any:
    if path is None and stage in ("run", "compare"):
        raise RecipeError(f"no {file_name(stage)} here", f"name one: `prism {stage} FILE`, or `prism {stage} tiny`")
    file = read(path) if path else Source(f"{stage} recipe", {}, {})
    recipe, values, checked, wrong = RECIPES[stage], file.values, None, []
    places = {key: (line, f"{file.name}:{line}") for key, line in file.lines.items()}
    for layer in layers:
        apply(recipe, values, [one for one in layer if stage != "run" or not put_into_step(one, values)], places)
    try:
        checked = recipe.model_validate(values)
    except ValidationError as error:
        wrong += validation_problems(error, recipe, values)
    if isinstance(trainer := values.get("trainer"), dict):
        wrong += [(("trainer", name), text) for name, text in option_problems(stage, trainer)]
    found = [(*_place(key, places, file.name), ".".join(map(str, key)), text) for key, text in wrong]
    problems = [": ".join(filter(None, words)) for _, *words in sorted(found, key=lambda problem: problem[0])]
    if unread or problems:
        raise RecipeError("\n".join([*unread, *problems]), "docs/recipes.md lists every key")
    return checked


def _place(path: KeyPath, places: Places, file: str) -> tuple[int, str]:
    """(line, place) of what set a key or the section it stands in."""
    known = (places[path[:length]] for length in range(len(path), 0, -1) if path[:length] in places)
    return next(known, (0, file))
