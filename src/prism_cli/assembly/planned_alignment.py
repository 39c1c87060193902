"""From a recipe with a discriminator to the job that is planned, and from any recipe that is planned."""

from dataclasses import replace
from pathlib import Path

from prism_cli.assembly.discriminator import discriminator_settings, samples_pairs
from prism_cli.assembly.planned_job import rl_job, rollout_job, sft_job, shared_values, trained_values
from prism_cli.assembly.policy import LANGUAGE_LAYERS
from prism_cli.discriminator.saved import model_folder, refuse_no_base
from prism_cli.planning.job import Device, Discriminator, Generation, Job
from prism_cli.planning.shapes import shape_of
from prism_cli.planning.start import Start, config_of
from prism_cli.recipes.stages import AlignRecipe, RLRecipe, SFTRecipe, WarmupRecipe

PLANNED = ("sft", "warmup", "align", "rl")
PlannedRecipe = SFTRecipe | WarmupRecipe | AlignRecipe | RLRecipe


def job_of(recipe: PlannedRecipe, device: Device, start: Start) -> Job:
    """The job of any recipe that is planned.

    Args:
        recipe: Of one of the stages in `PLANNED`.
        device: What it will run on.
        start: Its policy.

    Raises:
        RecipeError: the discriminator's base has no config, or is none that a discriminator is made from.
    """
    match recipe:
        case SFTRecipe():
            return sft_job(recipe, device, start)
        case WarmupRecipe():
            return warmup_job(recipe, device, start)
        case AlignRecipe():
            return align_job(recipe, device, start)
        case RLRecipe():
            return rl_job(recipe, device, start)


def align_job(recipe: AlignRecipe, device: Device, start: Start) -> Job:
    """The job of an align recipe."""
    return replace(rollout_job("align", recipe, device, start), discriminator=_discriminator(recipe, start))


def warmup_job(recipe: WarmupRecipe, device: Device, start: Start) -> Job:
    """The job of a warm-up recipe."""
    lengths = recipe.max_prompt_tokens, recipe.max_response_tokens
    return Job(
        stage="warmup",
        **shared_values(recipe.launch, device, start, recipe.max_prompt_tokens),
        **trained_values({}, None, device, start),
        micro_batch=1,
        passes=1,
        prompt=recipe.max_prompt_tokens,
        response=recipe.max_response_tokens,
        group=1,
        packed=False,
        reference=False,
        generation=None if recipe.discriminator.warmup.data else Generation(recipe.batch_size, *lengths),
        discriminator=replace(_discriminator(recipe, start), warms_up=True),
        steps=None,
    )


def _discriminator(recipe: AlignRecipe | WarmupRecipe, start: Start) -> Discriminator:
    settings = discriminator_settings(recipe)
    origin = settings.start
    # One that an earlier step will make can't be looked at yet.
    path = origin.path if origin.path is not None and Path(origin.path).is_dir() else None
    if path is None:
        config = start.config if origin.base is None else config_of(origin.base, None)
        refuse_no_base(config.model_type, "the policy" if origin.base is None else f"discriminator.base {origin.base}")
        if origin.upcycling is not None:
            from prism_cli.discriminator.upcycle import mixture_config

            config = mixture_config(config, origin.upcycling)
    else:
        config = config_of(str(model_folder(path)), None)
    on_pairs = path is None and recipe.discriminator.warmup.data is not None
    shape = shape_of(config, LANGUAGE_LAYERS, body=True)
    sees = origin.kind != "text_only"
    return Discriminator(shape, settings.learner.micro_batch, start.parts, sees, samples_pairs(recipe) or on_pairs)
