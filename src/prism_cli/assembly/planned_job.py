"""From a training recipe to the job that is planned: sizes and settings, read off config files alone."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prism_cli.assembly.generation import planned_backend
from prism_cli.assembly.policy import LANGUAGE_LAYERS, Pretrained, TinySizes, resolve_start, start_policy
from prism_cli.assembly.run_folder import resolve_launch
from prism_cli.errors import PrismError, RecipeError
from prism_cli.evaluation.backend import PolicyFacts
from prism_cli.planning.job import Adapters, Device, Generation, Job
from prism_cli.planning.shapes import shape_of
from prism_cli.planning.start import TYPES, Start, bytes_per_weight, config_of, loaded_start, saved_start
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.sections import ImageSection, LoRA
from prism_cli.recipes.stages import RLRecipe, RolloutStage, SFTRecipe, Stage
from prism_cli.runs.references import resolve_model

if TYPE_CHECKING:  # it imports torch
    from prism_cli.models import Policy

# A stage's job on a device, from a start.
MakeJob = Callable[[Device, Start], Job]


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
        # By then it is saved in a folder.
        return earlier._replace(saved=True, attention=start.attention)
    if start.run is not None:
        return saved_start(resolve_model(start.run)[0], ImageSection().max_pixels)._replace(attention=start.attention)
    parts = len(start.response.parts)
    match start.model:
        case None:
            raise RecipeError(
                "the recipe names no model to plan for",
                "give --model (a folder or hub id) or --from RUN (a finished run)",
            )
        case TinySizes():
            # It is built for real, in a moment.
            config = start_policy(recipe).model.config
            return Start(config, start.max_pixels, 4, parts, saved=False, attention=start.attention)
        case Pretrained(path, revision, dtype):
            config = config_of(path, revision)
            weight_bytes = bytes_per_weight(config) if dtype == "auto" else TYPES[dtype]
            return Start(config, start.max_pixels, weight_bytes, parts, attention=start.attention)


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
        return make_job(Device(torch.accelerator.is_available(), memory), loaded_start(policy))
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


def rl_job(recipe: RLRecipe, device: Device, start: Start) -> Job:
    """The job of an RL recipe."""
    return rollout_job("rl", recipe, device, start, recipe.algorithm.oversampling)


def rollout_job(stage: str, recipe: RolloutStage, device: Device, start: Start, oversampling: int = 1) -> Job:
    """The job of a recipe with rollouts, without a discriminator.

    Args:
        stage: align or rl.
        recipe: Its recipe.
        device: What it will run on.
        start: Its policy.
        oversampling: Prompts rolled out at once, as a multiple of a step's.
    """
    rollouts = recipe.prompts_per_step * recipe.rollouts
    passes = max(1, rollouts // (recipe.micro_batch * recipe.launch.world_size))
    return Job(
        stage=stage,
        **shared_values(recipe.launch, device, start, recipe.max_prompt_tokens),
        **trained_values(recipe.trainer, recipe.lora, device, start),
        micro_batch=recipe.micro_batch,
        passes=passes,
        prompt=recipe.max_prompt_tokens,
        response=recipe.max_response_tokens,
        group=recipe.rollouts,
        packed=start.attention == "sdpa",
        reference=recipe.kl > 0 and recipe.lora is None,
        generation=_generation(recipe, recipe.micro_batch * passes * oversampling, device, start),
        discriminator=None,
        steps=recipe.max_steps,
    )


def _generation(recipe: RolloutStage, rollouts: int, device: Device, start: Start) -> Generation:
    lengths = recipe.max_prompt_tokens, recipe.max_response_tokens
    four_bits = recipe.lora is not None and recipe.lora.bits is not None
    facts = PolicyFacts(start.config.model_type, four_bits, start.saved)
    vllm = planned_backend(recipe.generation, facts, device.accelerator).vllm
    if vllm is None:
        return Generation(rollouts, *lengths)
    share = vllm.memory if vllm.server is None else 0.0
    return Generation(rollouts, *lengths, share, vllm.sleep, vllm.tensor_parallel)


def shared_values(launch: LaunchSection, device: Device, start: Start, most_tokens: int) -> dict[str, Any]:
    """Values that every job has; `most_tokens` bound a picture's."""
    policy = shape_of(start.config, LANGUAGE_LAYERS)
    return {
        "device": device,
        "policy": policy,
        "weight_bytes": start.weight_bytes,
        "launch": resolve_launch(launch),
        "pixels": min(start.pixels, most_tokens * (policy.patch * policy.merge) ** 2),
    }


def trained_values(options: Mapping[str, Any], lora: LoRA | None, device: Device, start: Start) -> dict[str, Any]:
    """Values of the policy's training."""
    return {
        "checkpointing": options.get("gradient_checkpointing", device.accelerator),
        "autocast": options.get("bf16", device.accelerator) and start.weight_bytes == 4,
        "adapters": None if lora is None else Adapters(lora.rank, lora.vision, lora.bits == 4),
    }
