"""vLLM in a trainer: what TRL's own support of it lacks for pictures, placeholders and CPUs.

TRL starts vLLM, gives it the weights of each step and hands it prompts. What is mended here, each with its reason
beside it, would else give wrong rollouts without a word.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.generation import vllm_generation

from prism_cli.adapters import has_adapters
from prism_cli.errors import PrismError
from prism_cli.evaluation.sampling import end_tokens
from prism_cli.evaluation.vllm_sampling import (
    SEEDS_APART,
    SUPPRESSED,
    close,
    collapsed,
    engine_options,
    image_token,
    keep_process_groups,
    refuse_other_prompts,
    starting,
)
from prism_cli.models import Policy
from prism_cli.trainers.merged_weights import merged_weights

# What TRL sets for a colocated vLLM.
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# No float16 overflows, and e to it is 0 in every type.
LOGIT_OF_NEVER = -1e4


class VLLMRollouts(NamedTuple):
    """Use of vLLM.

    Attributes:
        colocated: In this process; else on a server.
        arguments: Keyword arguments of GRPOConfig.
        options: Options of vLLM's `LLM`, which win over TRL's and ours; colocated.
    """

    colocated: bool
    arguments: dict[str, Any]
    options: dict[str, Any]

    def started_for(self, processor: Any, bf16: bool, seed: int) -> AbstractContextManager[None]:
        """A block in which TRL starts vLLM with what it doesn't let one say.

        Args:
            processor: The policy's.
            bf16: Whether the policy is trained in it.
            seed: Of the run; TRL has the same one for all.
        """
        return _started(self, processor, bf16, seed)


@contextmanager
def _started(how: VLLMRollouts, processor: Any, bf16: bool, seed: int) -> Iterator[None]:
    if not how.colocated:
        with _reached(how.arguments["vllm_server_base_url"]):
            yield
        return
    with starting():
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        keep_process_groups()

    def start(**options: Any) -> Any:
        ours = engine_options(processor, "bfloat16" if bf16 else "float32")
        with starting():
            return LLM(**{**options, **ours, "seed": options["seed"] + SEEDS_APART * seed, **how.options})

    if not torch.cuda.is_available():
        keep_cpu_weights_unpacked()
    module: Any = vllm_generation
    before, module.LLM = module.LLM, start
    environment = {name: os.environ.get(name) for name in LAUNCHERS}
    try:
        yield
    finally:
        module.LLM = before
        # Left there, a pipeline's next stage would take itself for one that a launcher started.
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _reached(url: str) -> Iterator[None]:
    from requests import ConnectionError

    try:
        yield
    except ConnectionError as error:
        raise PrismError(
            f"generation.server: no vLLM answers at {url}", "start it with `trl vllm-serve`, see docs/generation.md"
        ) from error


def keep_cpu_weights_unpacked() -> None:
    """Keeps vLLM on a CPU from packing the weights into a form of its own: new ones could no longer be put in."""
    from vllm.model_executor.layers import utils  # pyright: ignore[reportMissingImports]

    def as_they_are(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = as_they_are


def mend(generation: Any, processor: Any) -> None:
    """Makes TRL's vLLM right for pictures.

    Args:
        generation: The trainer's `VLLMGeneration`.
        processor: The policy's.
    """
    sync, generate = generation.sync_weights, generation.generate
    if has_adapters(generation.model):
        gathered = generation._dist.gather_params
        generation._iter_named_params = lambda: merged_weights(generation.model, gathered)
    mark, colocated = image_token(processor), generation.mode == "colocate"

    def sync_weights() -> None:
        sync()
        # TRL forgets what was computed of prompts, not of pictures: those would stay what the old vision tower saw.
        if colocated:
            generation.llm.llm_engine.reset_encoder_cache()
        elif generation.accelerator.is_main_process:
            forget_pictures(generation.vllm_client)

    def generate_from(prompts: list[list[int]], images: Any, *args: Any, **kwargs: Any) -> tuple:
        # TRL's prompts hold a placeholder for each piece of an image, and vLLM puts in as many for each it finds.
        given = [collapsed(ids, mark) for ids in prompts] if colocated and images is not None else prompts
        output = generate(given, images, *args, **kwargs)
        if colocated:
            refuse_other_prompts(output[0], prompts, generation.model.name_or_path)
        return output

    generation.sync_weights, generation.generate = sync_weights, generate_from


def forget_pictures(client: Any) -> None:
    """Makes a server forget what its old vision tower saw.

    Args:
        client: TRL's `VLLMClient`.

    Raises:
        PrismError: the server refuses.
    """
    url = f"{client.base_url}/reset_encoder_cache"
    # Not the client's own `_post`: it reads JSON, and this answer is empty.
    answer = client.session.post(url)
    if answer.status_code != 200:
        raise PrismError(f"{url} answers {answer.status_code}", "start the server with `trl vllm-serve`")


def never_says(model: Any, tokens: Sequence[int]) -> None:
    """Takes tokens out of what a model may say, in all its log-probabilities: a bias of its head that is not saved.

    vLLM's rollouts leave these tokens out, and its log-probabilities are of what is left. Under ZeRO-3 nothing is done:
    TRL then gathers the head's own weights alone; what a trained model gives placeholders is nothing either way.
    """
    if is_deepspeed_zero3_enabled():
        return
    head = model.get_output_embeddings()
    bias = head.weight.new_zeros(head.weight.shape[0])
    bias[list(tokens)] = LOGIT_OF_NEVER
    del head._parameters["bias"]
    head.register_buffer("bias", bias, persistent=False)


def suppressing(policy: Policy, tokens: Sequence[int]) -> dict[str, Any]:
    """Options of vLLM's SamplingParams: tokens never said, and those that end a response."""
    ends = end_tokens(policy.model, policy.processor.tokenizer)
    return {"logit_bias": dict.fromkeys(tokens, SUPPRESSED), "stop_token_ids": ends}


def end(generation: Any) -> None:
    """Ends a colocated vLLM; its memory is free with the trainer's."""
    if generation.mode == "colocate":
        close(generation.llm)
