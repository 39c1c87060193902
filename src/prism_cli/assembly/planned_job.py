"""From a training recipe to the job that is planned: sizes and settings, read off config files alone."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.assembly.policy import LANGUAGE_LAYERS, Pretrained, TinySizes, resolve_start, start_policy
from prism_cli.errors import CheckpointError, PrismError, RecipeError
from prism_cli.model_configs import config_folder
from prism_cli.planning.job import Adapters, Device, Job, Launch
from prism_cli.planning.shapes import shape_of
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.sections import ImageSection, LoRA
from prism_cli.recipes.stages import SFTRecipe, Stage
from prism_cli.runs.references import resolve_model

if TYPE_CHECKING:  # it imports torch
    from prism_cli.models import Policy

TYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Start(NamedTuple):
    """The model that a stage starts from.

    Attributes:
        config: transformers' config of the policy.
        pixels: Of a picture, at most.
        weight_bytes: Bytes of a weight as loaded.
        parts: How many parts a response has.
        saved: It lies in a folder or on the hub, where vLLM can open it; a tiny model doesn't.
        attention: Name of the attention.
    """

    config: Any
    pixels: int
    weight_bytes: int
    parts: int
    saved: bool = True
    attention: str = "sdpa"


# A stage's job on a device, from a start.
MakeJob = Callable[[Device, Start], Job]

# What a stage starts from ---------------------------------------------------------------------------------------------


def start_of(recipe: Stage, earlier: Start | None = None) -> Start:
    """The model that a stage starts from, without its weights.

    Args:
        recipe: The stage's recipe.
        earlier: The policy of the step it starts from, where that has not run yet.

    Raises:
        RecipeError: no model named, or no config to be had.
        CheckpointError: the run it starts from has no model.
    """
    start = resolve_start(recipe)
    if start.model is None and earlier is not None:
        return earlier
    if start.run is not None:
        return _of_run(resolve_model(start.run)[0])
    parts = len(start.response.parts)
    match start.model:
        case None:
            raise RecipeError(
                "the recipe names no model to plan for",
                "give --model (a folder or hub id) or --from RUN (a finished run)",
            )
        case TinySizes():
            # It is built for real, in a moment.
            return Start(start_policy(recipe).model.config, start.max_pixels, 4, parts, saved=False)
        case Pretrained(path, revision, dtype, attention):
            config = config_of(path, revision)
            weight_bytes = _bytes(config) if dtype == "auto" else TYPES[dtype]
            return Start(config, start.max_pixels, weight_bytes, parts, attention=attention)


def start_loaded(policy: "Policy") -> Start:
    """The same of a policy that is loaded."""
    config = policy.model.config
    return Start(
        config,
        _pixels(policy.processor.image_processor.size),
        policy.model.dtype.itemsize,
        len(policy.grammar.parts),
        bool(policy.model.name_or_path),
        config._attn_implementation,
    )


def _of_run(folder: Path) -> Start:
    try:
        size = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["size"]
    except (OSError, ValueError, KeyError):
        size = _processor_size(folder)
    try:
        parts = len(json.loads((folder / "response.json").read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / 'response.json'} can't be read: {error}", "name a finished run") from None
    config = config_of(str(folder), None)
    return Start(config, _pixels(size), _bytes(config), parts)


def _processor_size(folder: Path) -> dict[str, int]:
    try:
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        return settings["image_processor"]["size"]
    except (OSError, ValueError, KeyError):
        return {"longest_edge": ImageSection().max_pixels}


def _pixels(size: Mapping[str, int]) -> int:
    return int(size["longest_edge"])


def _bytes(config: Any) -> int:
    return TYPES.get(str(getattr(config, "dtype", None) or "float32").removeprefix("torch."), 4)


def config_of(path: str, revision: str | None) -> Any:
    """A model's config: of a folder, of a shipped one, of the hub's cache, else of the hub."""
    from transformers import AutoConfig

    folder = config_folder(path)
    try:
        return AutoConfig.from_pretrained(
            str(folder) if folder else path, revision=None if folder else revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"no config of {path!r} to plan by: {reason}", "give a model's folder, or a hub id where there is a network"
        ) from None


# The job --------------------------------------------------------------------------------------------------------------


def job_ahead(recipe: Stage, make_job: MakeJob) -> Job | None:
    """The job of a stage on a device of any size, from config files; None where they can't be read.

    Args:
        recipe: The stage's recipe, for where it starts.
        make_job: Of the stage.
    """
    import torch

    try:
        return make_job(Device(torch.accelerator.is_available(), float("inf")), start_of(recipe))
    except PrismError:
        return None


def job_loaded(make_job: MakeJob, policy: "Policy") -> Job | None:
    """The job of a stage that is about to train a loaded policy here; None where a config can't be read."""
    import torch

    cuda = torch.cuda.is_available()
    memory = float(torch.cuda.get_device_properties(0).total_memory) if cuda else float("inf")
    try:
        return make_job(Device(torch.accelerator.is_available(), memory), start_loaded(policy))
    except PrismError:
        return None


def sft_job(recipe: SFTRecipe, device: Device, start: Start) -> Job:
    """The job of an SFT recipe."""
    return Job(
        stage="sft",
        **shared_values(recipe.launch, device, start, recipe.max_tokens),
        **trained_values(recipe.trainer, recipe.lora, device, start),
        micro_batch=recipe.batch_size,
        passes=recipe.gradient_accumulation,
        prompt=recipe.max_tokens,
        response=0,
        group=1,
        packed=False,
        reference=False,
        generation=None,
        discriminator=None,
        steps=recipe.max_steps,
    )


def shared_values(launch: LaunchSection, device: Device, start: Start, most_tokens: int) -> dict[str, Any]:
    """What every job has; `most_tokens` bound a picture's."""
    policy = shape_of(start.config, LANGUAGE_LAYERS)
    return {
        "device": device,
        "policy": policy,
        "weight_bytes": start.weight_bytes,
        "launch": Launch(**launch.model_dump()),
        "pixels": min(start.pixels, most_tokens * (policy.patch * policy.merge) ** 2),
    }


def trained_values(options: Mapping[str, Any], lora: LoRA | None, device: Device, start: Start) -> dict[str, Any]:
    """How the policy is trained."""
    return {
        "checkpointing": options.get("gradient_checkpointing", device.accelerator),
        "autocast": options.get("bf16", device.accelerator) and start.weight_bytes == 4,
        "adapters": None if lora is None else Adapters(lora.rank, lora.vision, lora.bits == 4),
    }
