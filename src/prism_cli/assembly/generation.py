"""The section `generation`: which backend generates a policy's responses, and the sampler or rollouts it gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.errors import RecipeError
from prism_cli.evaluation.backend import TRANSFORMERS, VLLM, Backend, PolicyFacts, Sample, vllm_obstacle
from prism_cli.progress import say
from prism_cli.recipes.generation import Generation, TransformersGeneration, VLLMGeneration

if TYPE_CHECKING:  # they import torch
    from prism_cli.models import Policy
    from prism_cli.trainers.vllm_rollouts import VLLMRollouts

# Share of a GPU's memory for vLLM where nothing else uses the GPU.
SAMPLING_MEMORY = 0.85


# Deciding -------------------------------------------------------------------------------------------------------------


def resolved(section: Generation) -> Backend:
    """The backend that a section names."""
    match section:
        case TransformersGeneration():
            return TRANSFORMERS
        case VLLMGeneration():
            return Backend(VLLM(**section.model_dump(exclude={"type", "mode"})))


VLLM_BY_DEFAULT = resolved(VLLMGeneration())


def planned_backend(section: Generation | None, policy: PolicyFacts, on_gpu: bool) -> Backend:
    """The backend that a stage will take: the one its recipe names, else vLLM where it can serve the policy."""
    if section is not None:
        return resolved(section)
    return TRANSFORMERS if vllm_obstacle(policy, on_gpu, named=False) else VLLM_BY_DEFAULT


# Without a model ------------------------------------------------------------------------------------------------------


def check_sampling(section: Generation | None) -> list[tuple[str, str]]:
    """The plan's lines about the backend of a stage that only samples.

    Raises:
        RecipeError: a server is named, which follows a training.
    """
    vllm = None if section is None else resolved(section).vllm
    if vllm is not None and vllm.server is not None:
        raise RecipeError(
            "generation.mode=server: a server follows a training's weights, and here none is trained",
            "leave generation.mode and generation.server out",
        )
    return _lines(vllm)


def check_rollouts(
    section: Generation | None, tiny: bool, four_bits: bool, processes: int, longest: int
) -> list[tuple[str, str]]:
    """The plan's lines about the backend of a training's rollouts.

    Args:
        section: The recipe's.
        tiny: The policy is built on the spot.
        four_bits: Its weights are held in 4 bits.
        processes: That train, on a node.
        longest: Tokens of the longest prompt and response together.

    Raises:
        RecipeError: vLLM is named and can't do what the recipe wants of it.
    """
    vllm = None if section is None else resolved(section).vllm
    if vllm is None:
        return []
    if tiny:
        raise RecipeError(
            "generation.type=vllm opens a saved model, and model.type=tiny makes one on the spot",
            "train it first (prism sft) and start from that run (--from RUN)",
        )
    if four_bits:
        raise RecipeError("generation.type=vllm can't take weights in 4 bits", "leave lora.bits or vLLM out")
    if processes % vllm.tensor_parallel:
        raise RecipeError(
            f"generation.tensor_parallel {vllm.tensor_parallel} doesn't divide launch.processes {processes}",
            "each copy of the model takes that many of the training processes",
        )
    if vllm.max_model_tokens is not None and vllm.max_model_tokens < longest:
        raise RecipeError(
            f"generation.max_model_tokens {vllm.max_model_tokens} is less than max_prompt_tokens + "
            f"max_response_tokens = {longest}",
            "leave it out, or lower these",
        )
    return _lines(vllm)


def _lines(vllm: VLLM | None) -> list[tuple[str, str]]:
    if vllm is None:
        return []
    where = vllm.server or f"{vllm.tensor_parallel} GPU a copy"
    # No refusal: a recipe may be looked at where it will not run.
    missing = "" if find_spec("vllm") else ", which is not installed here"
    return [("generates", f"vLLM, {where}{missing}")]


# With one -------------------------------------------------------------------------------------------------------------


def chosen_backend(section: Generation | None, policy: "Policy") -> Backend:
    """The backend a stage takes here; see `available_backend`."""
    return available_backend(None if section is None else resolved(section), policy)


def available_backend(named: Backend | None, policy: "Policy") -> Backend:
    """The backend for a loaded policy; where none is named, a line says which and why.

    Args:
        named: By the recipe.
        policy: Who is to generate.

    Raises:
        RecipeError: vLLM is named and can't serve this policy here.
    """
    facts, on_gpu = _facts(policy), _on_gpu()
    if named is None:
        obstacle = vllm_obstacle(facts, on_gpu, named=False)
        say(f"transformers generates: {obstacle.reason}" if obstacle else "vLLM generates (generation.type=vllm)")
        return TRANSFORMERS if obstacle else VLLM_BY_DEFAULT
    if named.vllm is None:
        return named
    if (obstacle := vllm_obstacle(facts, on_gpu, named=True)) is not None:
        raise RecipeError(f"generation.type=vllm: {obstacle.reason}", obstacle.hint)
    if named.vllm.server is not None:
        if not on_gpu:
            raise RecipeError(
                "generation.mode=server: the policy's weights reach a server from GPU to GPU only",
                "leave generation.mode and generation.server out",
            )
        say(f"vLLM generates on {named.vllm.server}, which is waited for")
    return named


def _facts(policy: "Policy") -> PolicyFacts:
    from prism_cli.adapters import in_four_bits

    model = policy.model
    return PolicyFacts(model.config.model_type, in_four_bits(model), bool(model.name_or_path))


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def vllm_rollouts(
    backend: Backend, policy: "Policy", longest: int, revision: str | None = None
) -> "VLLMRollouts | None":
    """vLLM's part in a trainer's rollouts; None where transformers generates.

    Args:
        backend: From `chosen_backend`.
        policy: Its length bounds what vLLM is asked for.
        longest: Tokens of the longest prompt and response together.
        revision: Of the hub, where the model comes from there.
    """
    vllm = backend.vllm
    if vllm is None:
        return None
    from prism_cli.trainers.vllm_rollouts import VLLMRollouts

    arguments: dict[str, Any] = {
        "use_vllm": True,
        "vllm_mode": "colocate" if vllm.server is None else "server",
        "vllm_importance_sampling_correction": vllm.importance_correction,
        # Token by token: the ratio of a response of thousands of tokens is far from 1 by rounding alone.
        "vllm_importance_sampling_mode": "token_truncate",
    }
    if vllm.server is not None:
        return VLLMRollouts(False, {**arguments, "vllm_server_base_url": vllm.server.rstrip("/")}, {})
    length = min(vllm.max_model_tokens or longest, policy.model.config.get_text_config().max_position_embeddings)
    arguments |= {
        "vllm_gpu_memory_utilization": vllm.memory,
        "vllm_enable_sleep_mode": vllm.sleep and _on_gpu(),
        "vllm_tensor_parallel_size": vllm.tensor_parallel,
        "vllm_max_model_length": length,
    }
    return VLLMRollouts(True, arguments, {**({"revision": revision} if revision else {}), **vllm.options})


@contextmanager
def sampler(
    backend: Backend, policy: "Policy", folder: Path | str, *, max_tokens: int, batch_size: int
) -> Iterator[Sample]:
    """A function that answers conversations; the memory that vLLM holds on a device is freed at the end.

    Args:
        backend: From `chosen_backend`.
        policy: Who answers. For transformers its model goes to the device, for vLLM to main memory.
        folder: What the policy was loaded from; vLLM opens it itself, at the first call.
        max_tokens: Longest response.
        batch_size: Responses that transformers generates in one forward pass.

    Raises:
        PrismError: at a call: vLLM did not start, or reads prompts otherwise than the policy's processor.
    """
    from prism_cli.models import device, free_memory, placeholder_ids

    suppress = placeholder_ids(policy.processor)
    if backend.vllm is None:
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
        "max_model_len": backend.vllm.max_model_tokens or -1,
        "tensor_parallel_size": backend.vllm.tensor_parallel,
        "gpu_memory_utilization": SAMPLING_MEMORY,
        **backend.vllm.options,
    }
    with vllm_sampler(folder, policy, max_tokens=max_tokens, suppress=suppress, options=options) as sample:
        yield sample
    free_memory()
