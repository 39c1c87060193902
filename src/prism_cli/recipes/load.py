"""Turns a recipe file, overrides and command-line options into one checked recipe, or says all that is wrong."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from prism_cli.errors import RecipeError
from prism_cli.recipes.changes import Change, apply, parse_override, put_into_step
from prism_cli.recipes.pipelines import PipelineStep
from prism_cli.recipes.problems import validation_problems
from prism_cli.recipes.sources import KeyPath, Source, file_name, find_recipe, read
from prism_cli.recipes.stages import RECIPES
from prism_cli.recipes.trl_options import option_problems

# Dotted key → the command-line option that sets it, for messages.
FLAGS = {
    "model": "--model",
    "data": "--data",
    "from": "--from",
    "discriminator.warmup.data": "--data",
    "output": "--output",
    "teacher.endpoint": "--teacher-endpoint",
    "teacher.model": "--teacher-model",
    "teacher.store": "--teacher-store",
    "teacher.max_calls": "--max-teacher-calls",
    "teacher.max_usd": "--max-teacher-usd",
    "max_steps": "--max-steps",
    "samples": "--samples",
    "keep": "--keep",
    "band": "--band",
    "seed": "--seed",
    "runs": "RUN",
    "benchmarks.tasks": "--benchmarks",
}


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
        options: Dotted key → plain value; they win over overrides, and a `teacher.endpoint` or `teacher.model` makes
            the teacher an endpoint whatever the recipe says.

    Raises:
        RecipeError: with every problem, one a line, each with its place.
    """
    chosen = [Change(key, value, FLAGS[key], wins=True) for key, value in (options or {}).items()]
    return _load(stage, find_recipe(stage, source), overrides, chosen)


def load_step(step: PipelineStep, base: Path, options: Mapping[str, Any] | None = None) -> Any:
    """The recipe of one step of a pipeline, with the step's `set` applied.

    Args:
        step: The step.
        base: Folder of the pipeline's file; the step's recipe is relative to it.
        options: Dotted key → value that the pipeline decides (`from`, `output`, `seed`).

    Raises:
        RecipeError: as `load_recipe`; problems in `set` name the step.
    """
    name = step.id or step.stage
    changes = [Change(key, value, f"step {name!r}, set") for key, value in step.set.items()]
    changes += [Change(key, value, f"step {name!r}", wins=True) for key, value in (options or {}).items()]
    return _load(step.stage, find_recipe(step.stage, base / step.recipe), (), changes)


def _load(stage: str, path: Path | None, overrides: Sequence[str], changes: Iterable[Change]) -> Any:
    if path is None and stage in ("run", "compare"):
        raise RecipeError(f"no {file_name(stage)} here", f"name one: `prism {stage} FILE`, or `prism {stage} tiny`")
    file = read(path) if path else Source(f"{stage} recipe", {}, {})
    recipe, values = RECIPES[stage], file.values
    written, unread = _parse(overrides)
    if stage == "run":
        written = [change for change in written if not put_into_step(change, values)]
    origins, unapplied = apply(recipe, values, [*written, *changes])
    places = _Places(file, origins)
    try:
        checked, wrong = recipe.model_validate(values), []
    except ValidationError as error:
        checked, wrong = None, list(validation_problems(error, recipe, values))
    if isinstance(trainer := values.get("trainer"), dict):
        wrong += [(("trainer", name), text) for name, text in option_problems(stage, trainer)]
    wrong.sort(key=lambda problem: places.place(problem[0])[0])
    if problems := unread + unapplied + [places.describe(problem) for problem in wrong]:
        raise RecipeError("\n".join(problems), "docs/recipes.md lists every key")
    return checked


def _parse(overrides: Sequence[str]) -> tuple[list[Change], list[str]]:
    changes, problems = [], []
    for text in overrides:
        try:
            changes.append(parse_override(text))
        except ValueError as error:
            problems.append(str(error))
    return changes, problems


class _Places(NamedTuple):
    """Where things were written: in a line of the file, or in an override or option."""

    file: Source
    origins: Mapping[KeyPath, str]

    def place(self, path: KeyPath) -> tuple[int, str]:
        """(line, text) of what set a path or the section it stands in; overrides and options come after all lines."""
        for length in range(len(path), 0, -1):
            if origin := self.origins.get(path[:length]):
                return sys.maxsize, origin
            if line := self.file.lines.get(path[:length]):
                return line, f"{self.file.name}:{line}"
        return 0, self.file.name

    def describe(self, problem: tuple[KeyPath, str]) -> str:
        """`place: dotted.key: what is wrong`."""
        path, text = problem
        return ": ".join(part for part in (self.place(path)[1], ".".join(map(str, path)), text) if part)
