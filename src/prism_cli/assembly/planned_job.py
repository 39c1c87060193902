"""What a recipe's stage will hold and compute, by config files alone: for the plan, and for the run's own check."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.assembly.discriminator import discriminator_settings, samples_pairs
from prism_cli.assembly.generation import planned_backend
from prism_cli.assembly.policy import LANGUAGE_LAYERS, start_policy
from prism_cli.discriminator.saved import model_folder, refuse_no_base
from prism_cli.discriminator.settings import Upcycling
from prism_cli.errors import CheckpointError, PrismError, RecipeError
from prism_cli.evaluation.backend import PolicyFacts
from prism_cli.model_configs import config_folder
from prism_cli.planning.job import Adapters, Device, Generation, Job, Judge, Launch
from prism_cli.planning.shapes import Shape, shape_of
from prism_cli.recipes.sections import ImageSection, ResponseSection, TinyModel
from prism_cli.recipes.stages import AlignRecipe, RLRecipe, RolloutStage, SFTRecipe, WarmupRecipe
from prism_cli.recipes.training import DAPO
from prism_cli.runs.references import resolve_model

PLANNED = (SFTRecipe, WarmupRecipe, AlignRecipe, RLRecipe)
TYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Start(NamedTuple):
    """What a stage starts from.

    Attributes:
        config: transformers' config of the policy.
        pixels: Of a picture, at most.
        weight_bytes: Bytes of a weight as loaded.
        parts: How many parts a response has.
        saved: The model can be opened from a folder or the hub.
    """

    config: Any
    pixels: int
    weight_bytes: int
    parts: int
    saved: bool = True


def start_of(recipe: Any, earlier: Start | None = None) -> Start:
    """What the stage's policy is, without its weights.

    Args:
        recipe: The stage's recipe.
        earlier: The policy of the step it starts from, where that has not run yet.

    Raises:
        RecipeError: no model named, or no config to be had.
        CheckpointError: the run it starts from has no model.
    """
    if recipe.from_ is not None:
        if earlier is not None:
            return earlier
        return _of_run(resolve_model(recipe.from_)[0])
    if recipe.model is None:
        if earlier is not None:
            return earlier
        raise RecipeError(
            "the recipe names no model to plan for", "give --model (a folder or hub id) or --from RUN (a finished run)"
        )
    pixels = (recipe.image or ImageSection()).max_pixels
    parts = len((recipe.response or ResponseSection()).parts)
    if isinstance(recipe.model, TinyModel):
        return Start(_tiny_config(recipe), pixels, 4, parts, saved=False)
    config = _config(recipe.model.path, recipe.model.revision)
    dtype = recipe.model.dtype
    return Start(config, pixels, _bytes(config) if dtype == "auto" else TYPES[dtype], parts)


def job_of(stage: str, recipe: Any, device: Device, start: Start) -> Job:
    """The stage as its memory and time see it.

    Args:
        stage: sft, warmup, align or rl.
        recipe: Its recipe.
        device: What it will run on.
        start: Its policy.

    Raises:
        RecipeError: the discriminator's base has no config, or is none that a discriminator is made from.
    """
    policy = _shape(start.config)
    launch = Launch(**recipe.launch.model_dump())
    options = getattr(recipe, "trainer", {})
    shared: dict[str, Any] = {
        "stage": stage,
        "device": device,
        "policy": policy,
        "weight_bytes": start.weight_bytes,
        "checkpointing": options.get("gradient_checkpointing", device.accelerator),
        "autocast": options.get("bf16", device.accelerator) and start.weight_bytes == 4,
        "launch": launch,
        "adapters": _adapters(recipe),
        "pixels": min(start.pixels, _longest(recipe) * (policy.patch * policy.merge) ** 2),
        "judge": _judge(recipe, start),
    }
    if isinstance(recipe, SFTRecipe):
        rows: dict[str, Any] = {"micro_batch": recipe.batch_size, "passes": recipe.gradient_accumulation}
        rows |= {"prompt": recipe.max_tokens, "response": 0, "group": 1, "packed": False, "reference": False}
        return Job(**shared, **rows, generation=None, steps=recipe.max_steps)
    rows = {"prompt": recipe.max_prompt_tokens, "response": recipe.max_response_tokens}
    if isinstance(recipe, WarmupRecipe):
        sampled = None if recipe.discriminator.warmup.data else Generation(recipe.batch_size, *_lengths(recipe))
        rows |= {"micro_batch": 1, "passes": 1, "group": 1, "packed": False, "reference": False}
        return Job(**shared, **rows, generation=sampled, steps=None)
    step = recipe.prompts_per_step * recipe.rollouts
    passes = max(1, step // (recipe.micro_batch * launch.world))
    rows |= {
        "micro_batch": recipe.micro_batch,
        "passes": passes,
        "group": recipe.rollouts,
        "packed": getattr(recipe.model, "attention", "sdpa") == "sdpa",
        "reference": recipe.kl > 0 and recipe.lora is None,
    }
    generation = _generation(recipe, recipe.micro_batch * passes, device, start)
    return Job(**shared, **rows, generation=generation, steps=recipe.max_steps)


def running_job(stage: str, recipe: Any, policy: Any, accelerator: bool, memory: float) -> Job | None:
    """The job of a stage that is about to train here; None where a config can't be read.

    Args:
        stage: sft, align or rl.
        recipe: Its recipe.
        policy: The loaded policy.
        accelerator: Whether it runs on a GPU.
        memory: Bytes of the device.
    """
    images = policy.processor.image_processor
    config = policy.model.config
    saved = bool(policy.model.name_or_path)
    start = Start(config, _pixels(images.size), policy.model.dtype.itemsize, len(policy.grammar.parts), saved)
    try:
        return job_of(stage, recipe, Device(accelerator, memory), start)
    except PrismError:
        return None


def _lengths(recipe: Any) -> tuple[int, int]:
    return recipe.max_prompt_tokens, recipe.max_response_tokens


def _longest(recipe: Any) -> int:
    """Tokens that a picture may take at most."""
    return recipe.max_tokens if isinstance(recipe, SFTRecipe) else recipe.max_prompt_tokens


def _generation(recipe: RolloutStage, rollouts: int, device: Device, start: Start) -> Generation:
    algorithm = getattr(recipe, "algorithm", None)
    if isinstance(algorithm, DAPO) and algorithm.max_rounds:
        rollouts *= algorithm.oversample
    lengths, four_bits = _lengths(recipe), recipe.lora is not None and recipe.lora.bits is not None
    facts = PolicyFacts(start.config.model_type, four_bits, start.saved)
    vllm = planned_backend(recipe.generation, facts, device.accelerator).vllm
    if vllm is None:
        return Generation(rollouts, *lengths)
    share = vllm.memory if vllm.server is None else 0.0
    return Generation(rollouts, *lengths, share, vllm.sleep, vllm.tensor_parallel)


def _adapters(recipe: Any) -> Adapters | None:
    lora = getattr(recipe, "lora", None)
    return None if lora is None else Adapters(lora.rank, lora.vision, lora.bits == 4)


def _judge(recipe: Any, start: Start) -> Judge | None:
    if not isinstance(recipe, AlignRecipe | WarmupRecipe):
        return None
    settings = discriminator_settings(recipe)
    origin, section = settings.start, recipe.discriminator
    path = origin.path if origin.path is not None and _is_there(origin.path) else None
    if path is None:
        config = start.config if origin.base is None else _config(origin.base, None)
        name = "the policy" if origin.base is None else f"discriminator.base {origin.base}"
        refuse_no_base(config.model_type, name)
        config = _upcycled(config, origin.upcycling)
    else:
        config = _config(str(model_folder(path)), None)
    warms = (
        isinstance(recipe, WarmupRecipe) or samples_pairs(recipe) or (path is None and section.warmup.data is not None)
    )
    micro_batch = settings.learner.micro_batch
    return Judge(_shape(config, body=True), micro_batch, start.parts, origin.kind != "text_only", warms)


def _is_there(path: str) -> bool:
    """Whether a discriminator can be looked at; one that an earlier step will make can't."""
    return Path(path).is_dir()


def _upcycled(config: Any, rule: Upcycling | None) -> Any:
    if rule is None:
        return config
    from prism_cli.discriminator.upcycle import mixture_config

    return mixture_config(config, rule)


def _shape(config: Any, body: bool = False) -> Shape:
    return shape_of(config, LANGUAGE_LAYERS, body)


def _tiny_config(recipe: Any) -> Any:
    """A tiny model's config: it is built for real, in a blink."""
    return start_policy(recipe).model.config


def _of_run(folder: Path) -> Start:
    try:
        size = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["size"]
    except (OSError, ValueError, KeyError):
        size = _processor_size(folder)
    try:
        parts = len(json.loads((folder / "response.json").read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / 'response.json'} can't be read: {error}", "name a finished run") from None
    config = _config(str(folder), None)
    return Start(config, _pixels(size), _bytes(config), parts)


def _processor_size(folder: Path) -> dict[str, int]:
    try:
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        return settings["image_processor"]["size"]
    except (OSError, ValueError, KeyError):
        return {"longest_edge": ImageSection().max_pixels}


def _pixels(size: Any) -> int:
    return int(size["longest_edge"])


def _bytes(config: Any) -> int:
    return TYPES.get(str(getattr(config, "dtype", None) or "float32").removeprefix("torch."), 4)


def _config(path: str, revision: str | None) -> Any:
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
