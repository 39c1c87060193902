"""Scaled-down recipes (`--shrink`): the values declared beside the fields, and small models in place of large ones."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from prism_cli.errors import RecipeError
from prism_cli.recipes.changes import Change, apply
from prism_cli.recipes.fields import keys, metadata, value_at
from prism_cli.recipes.identity import to_dict
from prism_cli.recipes.section import ScaledDown, Section
from prism_cli.recipes.sections import ImageSection, PretrainedModel, ResponseSection
from prism_cli.recipes.stages import AlignRecipe, CollectRecipe, EvalRecipe, RLRecipe, Stage, WarmupRecipe

USUAL_MODEL = "Qwen/Qwen3-VL-4B-Instruct"
PIXELS = 64 * 64
MAX_UPDATES = 2  # of one batch: a run of two steps ends with one


class Models(NamedTuple):
    """The models a CPU can train.

    Attributes:
        is_small: Whether a run or folder holds one.
        stand_in: Reference of a model and the tags of its responses → folder of a small one of the same kind; itself,
            if it is small.
    """

    is_small: Callable[[str], bool]
    stand_in: Callable[[str, tuple[str, ...]], str]


def scaled_down_values(recipe: Section, models: Models) -> dict[str, Any]:
    """Dotted key → plain value of all that changes.

    Raises:
        RecipeError: it measures or samples a large run; and as `models.stand_in`.
    """
    values = dict(_declared(recipe, ""))
    if isinstance(recipe, Stage):
        values |= _start(recipe, models)
    elif isinstance(recipe, EvalRecipe | CollectRecipe):
        _refuse_large(recipe.runs if isinstance(recipe, EvalRecipe) else filter(None, [recipe.from_]), models)
    if isinstance(recipe, AlignRecipe | WarmupRecipe):
        section = recipe.discriminator
        if section.path is not None and not models.is_small(section.path):
            values["discriminator.path"] = None
        if section.base is not None and (small := models.stand_in(section.base, _tags(recipe))) != section.base:
            values["discriminator.base"] = small
    if isinstance(recipe, RLRecipe) and recipe.trainer.get("num_iterations", 1) > MAX_UPDATES:
        values["trainer.num_iterations"] = MAX_UPDATES
    return values


def changed(recipe: Section, values: dict[str, Any]) -> Any:
    """The recipe with other values, checked.

    Args:
        recipe: As it was.
        values: Dotted key → plain value.
    """
    plain = to_dict(recipe)
    apply(type(recipe), plain, [Change(key, value, "--shrink") for key, value in values.items()], {})
    return type(recipe).model_validate(plain)


def describe(recipe: Section, values: dict[str, Any]) -> str:
    """`small stand-ins for model, data; max_steps 500 → 2, …; one process in place of 8; without benchmarks`.

    Args:
        recipe: As it was.
        values: Dotted key → new value.
    """
    plain = to_dict(recipe)
    before = {key: value_at(plain, key.split(".")) for key in values}
    numbers = [f"{key} {before[key] or 'all'} → {new}" for key, new in values.items() if type(new) is int]
    dropped = [key for key, new in values.items() if new in (None, False)]
    stand_ins = [key for key, new in values.items() if isinstance(new, str | dict) and key not in DESCRIBED_APART]
    parts = [
        f"small stand-ins for {', '.join(stand_ins)}" if stand_ins else "",
        ", ".join(numbers),
        _launch(before["launch"]) if "launch" in values else "",
        "transformers in place of vLLM" if (before.get("generation") or {}).get("type") == "vllm" else "",
        f"without {', '.join(dropped)}" if dropped else "",
    ]
    return "; ".join(filter(None, parts)) or "nothing: it is small already"


DESCRIBED_APART = ("launch", "generation", "image")


def _launch(launch: dict[str, Any]) -> str:
    zero = f" with ZeRO-{launch['zero']}" if launch["zero"] else ""
    return f"one process in place of {launch['processes'] * launch['nodes']}{zero}"


def _declared(section: Section, prefix: str) -> Iterator[tuple[str, Any]]:
    """The values declared beside a section's fields, and beside those of the sections in it, where they are others."""
    for key, name in keys(type(section)).items():
        value = getattr(section, name)
        scaled_down = metadata(type(section), name, ScaledDown)
        if scaled_down is None:
            yield from _declared(value, f"{prefix}{key}.") if isinstance(value, Section) else ()
        elif (value is not None or scaled_down.null) and (new := scaled_down.value(value)) != value:
            yield f"{prefix}{key}", to_dict(new) if isinstance(new, Section) else new


def _start(recipe: Stage, models: Models) -> dict[str, Any]:
    """A small model in place of a large one."""
    if recipe.from_ is not None and models.is_small(recipe.from_):
        return {}
    if recipe.model is not None and not isinstance(recipe.model, PretrainedModel):
        return {}
    model = recipe.model or PretrainedModel(path=recipe.from_ or USUAL_MODEL)
    path = models.stand_in(model.path, _tags(recipe))
    small = model.model_copy(update={"path": path, "revision": None, "attention": "sdpa"})
    return {"model": to_dict(small), "image": to_dict(ImageSection(min_pixels=PIXELS, max_pixels=PIXELS))}


def _tags(recipe: Stage) -> tuple[str, ...]:
    return tuple(tag for part in (recipe.response or ResponseSection()).parts.values() for tag in part.tags)


def _refuse_large(runs: Iterable[str], models: Models) -> None:
    for run in runs:
        if not models.is_small(run):
            raise RecipeError(
                f"--shrink runs scaled-down models only, and {run} has a large one", "name a run made with --shrink"
            )
