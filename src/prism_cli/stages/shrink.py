"""`--shrink`: any recipe on a laptop's CPU in a minute or two, to see it run from end to end before it costs anything.

The architecture, LoRA, algorithm, judge, readout, advantage and optimiser stay; widths, steps, batches and lengths
shrink; rows and teacher become those of the picture world, so that nothing is fetched or paid for.
"""

import hashlib
import json
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.assembly.response import grammar_of, instruction_of
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.model_configs import model_config, shipped_configs
from prism_cli.recipes.identity import run_folder, to_dict
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.pipelines import PipelineRecipe
from prism_cli.recipes.sections import MixtureData, ResponseSection, TinyModel, WorldData
from prism_cli.recipes.stages import RECIPES
from prism_cli.recipes.summary import ABSENT, at, in_words
from prism_cli.recipes.training import DAPO
from prism_cli.runs.references import SHRUNKEN, resolve_model
from prism_cli.worlds import WORLD_BLOCKS, world

MODELS = Path("runs/shrunken_models")
WITHOUT_A_START = "Qwen/Qwen3-VL-4B-Instruct"
NARROW = 512
ROWS, HELD_OUT, PIXELS = 32, 8, 64 * 64
# No more than these; a smaller value of the recipe stays.
AT_MOST = {
    "max_steps": 2,
    "prompts_per_step": 2,
    "rollouts": 4,
    "batch_size": 8,
    "gradient_accumulation": 2,
    "samples": 2,
    "max_tokens": 256,
    "max_prompt_tokens": 128,
    "max_response_tokens": 32,
    "rollouts_every": 1,
    "log_every": 1,
    "discriminator.warmup.pairs": 16,
    "discriminator.warmup.batch_size": 8,
    "discriminator.warmup.held_out": 8,
    "discriminator.warmup.epochs": 1,
    "discriminator.probe_every": 1,
    "algorithm.overlong_buffer": 8,
    "algorithm.max_rounds": 2,
}


class ThinModel(NamedTuple):
    """A model to be written before the stage runs.

    Attributes:
        folder: Where.
        large: The config of what it stands for.
        tags: The blocks it learns to write.
    """

    folder: Path
    large: dict[str, Any]
    tags: tuple[str, ...]


class Shrunken(NamedTuple):
    """A recipe that a laptop can run.

    Attributes:
        recipe: Of the same type as before.
        models: What it names and is not there yet.
        changes: A line a stage: what was changed.
    """

    recipe: Any
    models: list[ThinModel]
    changes: list[str]


def shrunken(stage: str, recipe: Any, base: Path | None = None) -> Shrunken:
    """The recipe with all that makes it large made small.

    Args:
        stage: Its stage.
        recipe: The resolved recipe.
        base: Folder of a pipeline's file.

    Raises:
        RecipeError: a model of which no config is here, or which is no dense Qwen3-VL; a large run to evaluate.
    """
    folder = str(run_folder(stage, recipe)) + ("" if recipe.output else SHRUNKEN)
    if isinstance(recipe, PipelineRecipe):
        assert base is not None, "a pipeline's recipe is a file"
        return _pipeline(recipe, base, folder)
    changes, models = _changes(recipe)
    values = to_dict(recipe)
    for key, value in (changes | {"output": folder}).items():
        *outer, last = key.split(".")
        section = values
        for name in outer:
            section = section[name]
        section[last] = value
    return Shrunken(RECIPES[stage].model_validate(values), models, [in_words(recipe, changes)])


def write_models(models: list[ThinModel]) -> None:
    """Writes the thin models that are not there yet; a few seconds each."""
    from rich import get_console

    from prism_cli.assembly.run_folder import quiet_libraries
    from prism_cli.tiny_models.thin import write_shrunken

    quiet_libraries()
    words = vocabulary()
    for model in models:
        with get_console().status(f"making {model.folder}"):
            model.folder.parent.mkdir(parents=True, exist_ok=True)
            write_shrunken(model.folder, model.large, words, model.tags)


def vocabulary() -> list[str]:
    """All words of the picture world, its blocks and the usual instruction: one vocabulary for policies and judges."""
    grammar = grammar_of(ResponseSection())
    words = (instruction_of(ResponseSection(), grammar) or "").split()
    marks = [mark for block in sorted(WORLD_BLOCKS) for mark in (f"<{block}>", f"</{block}>")]
    return sorted({*world("shapes").vocabulary, *words} - set(marks)) + marks


def _pipeline(recipe: PipelineRecipe, base: Path, folder: str) -> Shrunken:
    from prism_cli.recipes.steps import resolve_steps

    steps, models, told = [], {}, []
    for step, resolved in resolve_steps(recipe.steps, base, Path(folder), recipe.seed):
        changes, needed = _changes(resolved, pending=True, judge_pending=step.discriminator is not None)
        models |= {model.folder: model for model in needed}
        steps.append(step.model_copy(update={"set": {**step.set, **changes}}))
        told.append(f"{step.id or step.stage}: {in_words(resolved, changes)}")
    changed = recipe.model_copy(update={"steps": tuple(steps), "output": folder})
    return Shrunken(changed, list(models.values()), told)


# What changes ---------------------------------------------------------------------------------------------------------


def _changes(recipe: Any, pending: bool = False, judge_pending: bool = False) -> tuple[dict[str, Any], list[ThinModel]]:
    """Dotted key → new value, where it is another one, and the models that are then needed.

    Args:
        recipe: Of one stage.
        pending: The runs it starts from are earlier steps.
        judge_pending: So is its judge.
    """
    values, models = to_dict(recipe), []
    wanted: dict[str, Any] = {}
    if "model" in values:
        wanted |= _start(recipe, pending, models)
    if not pending:
        _refuse_large(getattr(recipe, "runs", ()))
        _refuse_large([recipe.from_] if "model" not in values and getattr(recipe, "from_", None) else [])
    for key, most in AT_MOST.items():
        if (value := at(values, key)) not in (ABSENT, None):
            wanted[key] = min(value, most)
    wanted |= _numbers(recipe, values, wanted)
    wanted |= _rows(recipe, values)
    if (judge := getattr(recipe, "discriminator", None)) is not None:
        wanted |= _judge(judge, judge_pending, models)
    for key, value in (
        ("launch", to_dict(LaunchSection())),
        ("generation", {"engine": "transformers"}),
        ("lora.bits", None),
        ("rewards.llm_judge", None),
        ("llm_judge", None),
        ("benchmarks", None),
        ("batch", False),
    ):
        if at(values, key) is not ABSENT:
            wanted[key] = value
    return {key: value for key, value in wanted.items() if not _same(at(values, key), value)}, models


def _start(recipe: Any, pending: bool, models: list[ThinModel]) -> dict[str, Any]:
    """A thin model in place of the large one."""
    if recipe.from_ is not None and (pending or _is_small(recipe.from_)):
        return {}
    if isinstance(recipe.model, TinyModel):
        return {}
    section = to_dict(recipe.model) if recipe.model is not None else {"type": "pretrained"}
    large = section.get("path") or (str(resolve_model(recipe.from_)[0]) if recipe.from_ else WITHOUT_A_START)
    grammar = grammar_of(recipe.response or ResponseSection())
    path = _thin(large, tuple(grammar.tags), models)
    image = {"min_pixels": PIXELS, "max_pixels": PIXELS}
    start = {"model": section | {"path": path, "revision": None, "attention": "sdpa"}, "image": image}
    return start | ({"from": None} if recipe.from_ else {})


def _judge(section: Any, pending: bool, models: list[ThinModel]) -> dict[str, Any]:
    wanted: dict[str, Any] = {"discriminator.warmup.data": None, "discriminator.warmup.stop_in": None}
    if section.path is not None and not pending and not _is_small(section.path):
        wanted["discriminator.path"] = None
    if section.base is not None:
        wanted["discriminator.base"] = _thin(section.base, tuple(sorted(WORLD_BLOCKS)), models)
    return wanted


def _thin(reference: str, tags: tuple[str, ...], models: list[ThinModel]) -> str:
    """The folder of the thin model that stands for a model; notes it to be written."""
    large = model_config(reference)
    if large is None:
        raise RecipeError(
            f"--shrink needs the config.json of {reference}",
            f"it comes with prism for {', '.join(shipped_configs())}; for another one name a local folder",
        )
    if Path(reference).parent == MODELS:
        return reference
    made_of = json.dumps([large, tags, vocabulary()], sort_keys=True)
    folder = MODELS / f"{Path(reference).name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    models.append(ThinModel(folder, large, tags))
    return folder.as_posix()


def _numbers(recipe: Any, values: dict[str, Any], capped: dict[str, Any]) -> dict[str, Any]:
    """What follows from the numbers of steps and rollouts."""
    numbers: dict[str, Any] = {}
    if "max_steps" in values:
        numbers["max_steps"] = steps = 2 * values["trainer"].get("num_iterations", 1)
        numbers["checkpoint.every"] = steps
        if values["checkpoint"]["evaluate_every"] is not None:
            numbers["checkpoint.evaluate_every"] = steps
    if "rollouts" in values:
        numbers["micro_batch"] = gcd(values["micro_batch"], capped["prompts_per_step"] * capped["rollouts"])
    if isinstance(getattr(recipe, "algorithm", None), DAPO):
        numbers["algorithm.oversample"] = min(recipe.algorithm.oversample, 2)
    return numbers


def _rows(recipe: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Rows of the picture world, and its oracle, where there are rows and a teacher."""
    wanted: dict[str, Any] = {}
    split = "test" if "runs" in values else "train"
    if "data" in values:
        wanted["data"] = _stand_in(recipe.data, split, HELD_OUT if split == "test" else ROWS)
    if values.get("eval_data") is not None:
        wanted["eval_data"] = _stand_in(recipe.eval_data, "tune", HELD_OUT)
    # A warm-up that learned published pairs has to sample its own.
    if values.get("teacher") is not None or ("teacher" in values and "discriminator" in values):
        modality = getattr(recipe.teacher, "modality", "image")
        wanted["teacher"] = {"type": "embedded", "modality": modality}
    return wanted


def _stand_in(section: Any, split: str, size: int) -> dict[str, Any]:
    if isinstance(section, MixtureData):
        measures = {
            name: {"weight": source.weight} if source.weight is not None else {"count": min(source.count or 1, size)}
            for name, source in section.sources.items()
        }
        sources = {
            name: {"type": "world", "split": split, "size": size, "seed": seed, **measure}
            for seed, (name, measure) in enumerate(measures.items())
        }
        return {"type": "mixture", "sources": sources}
    seed = section.seed if isinstance(section, WorldData) else 0
    return {"type": "world", "split": split, "size": size, "seed": seed}


# What is small --------------------------------------------------------------------------------------------------------


def _is_small(reference: str) -> bool:
    """Whether a run, a model's or a judge's folder holds a thin model."""
    try:
        folder = resolve_model(reference)[0]
    except CheckpointError:
        folder = Path(reference)
    config = model_config(str(folder)) or {}
    return config.get("text_config", {}).get("hidden_size", NARROW + 1) <= NARROW


def _refuse_large(runs: Any) -> None:
    for reference in runs:
        if not _is_small(reference):
            raise RecipeError(
                f"--shrink runs on thin models only, and {reference} has a large one", "name a run made with --shrink"
            )


def _same(old: Any, new: Any) -> bool:
    """Whether a section says the same but for defaults that the new one leaves out."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in old and old[name] == value for name, value in new.items())
    return old == new
