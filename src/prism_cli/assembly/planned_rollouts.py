"""From a recipe with rollouts to the job that is planned."""

from prism_cli.assembly.generation import planned_backend
from prism_cli.assembly.planned_job import Start, shared_values, trained_values
from prism_cli.evaluation.backend import PolicyFacts
from prism_cli.planning.job import Device, Generation, Job
from prism_cli.recipes.stages import RLRecipe, RolloutStage


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
