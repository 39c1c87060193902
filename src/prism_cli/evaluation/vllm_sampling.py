"""Sampling by vLLM: a saved policy's responses to prompts, where greedy the same as by transformers."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prism_cli import phases
from prism_cli.errors import PrismError
from prism_cli.evaluation.backend import Sampled
from prism_cli.evaluation.sampling import end_tokens

# vLLM's lowest logit bias; e^-100 of any probability is 0 in float32.
SUPPRESSED = -100.0
# Sets cache sizes by the GPU's memory; a CPU has none of its own.
CPU_CACHE_BYTES = 1 << 30
# Factor between the seeds of two chunks, so that their responses' seeds don't meet.
SEEDS_APART = 1_000_003


def collapsed(token_ids: Sequence[int], image_token: int | None) -> list[int]:
    """A prompt's tokens with one placeholder an image, as vLLM wants them: it puts in the others itself."""
    return [
        token for i, token in enumerate(token_ids) if token != image_token or i == 0 or token_ids[i - 1] != image_token
    ]


def image_token(processor: Any) -> int | None:
    """The token that stands for a piece of an image."""
    return getattr(processor, "image_token_id", None)


def engine_options(processor: Any, dtype: str) -> dict[str, Any]:
    """Options of vLLM's `LLM` that make it read a prompt as this processor does.

    Args:
        processor: The policy's, its pixel budget set.
        dtype: Type that vLLM computes in.
    """
    size = dict(processor.image_processor.size)
    options: dict[str, Any] = {
        "dtype": dtype,
        # The budget may have been set in this process; the folder's own file then says another.
        "mm_processor_kwargs": {"size": {edge: size[edge] for edge in ("shortest_edge", "longest_edge")}},
        "limit_mm_per_prompt": {"video": 0},
    }
    if not torch.cuda.is_available():
        options |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
    return options


@contextmanager
def starting() -> Iterator[None]:
    """Imports and starts vLLM quietly in this block.

    Raises:
        PrismError: it could not be started.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not torch.cuda.is_available():
        # Its own process would be one more that waits for these cores.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    threads = torch.set_num_threads
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise PrismError(
            f"vLLM did not start: {_reason(error)}",
            "see docs/generation.md for its memory and length; generation.type=transformers needs no vLLM",
        ) from error
    finally:
        torch.set_num_threads = threads  # vLLM on a CPU replaces it by one that does nothing


def keep_process_groups() -> None:
    """Has engines in this process leave its groups of processes standing, at their shutdown and when collected.

    vLLM takes the process for its own and ends every group in it; in a process that a launcher started they are the
    trainer's. It still ends groups of its own for tensor parallelism, and frees its memory.
    """
    if torch.distributed.is_initialized():
        from vllm.distributed import parallel_state  # pyright: ignore[reportMissingImports]

        parallel_state.destroy_distributed_environment = lambda: None


def _reason(error: Exception) -> str:
    """The first line that names a reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "validation error" not in line), lines[0] if lines else repr(error))


@contextmanager
def vllm_sampler(
    folder: str | Path,
    policy: Any,
    *,
    max_tokens: int,
    suppress: Sequence[int],
    options: dict[str, Any],
) -> Iterator[Callable[..., list[Sampled]]]:
    """A function that takes conversations as `sample_responses` does; its first call starts vLLM, which ends with the
    context.

    Args:
        folder: The saved policy.
        policy: The same as `models.Policy`: its end tokens, and its processor, by which vLLM's prompts are checked.
        max_tokens: Longest response.
        suppress: Tokens never emitted.
        options: Of vLLM's `LLM`.

    Raises:
        PrismError: at a call: vLLM did not start, or reads prompts otherwise than the processor.
    """
    engines: list[Any] = []
    processor, tokenizer = policy.processor, policy.processor.tokenizer
    ends = end_tokens(policy.model, tokenizer)
    bias = dict.fromkeys(suppress, SUPPRESSED)

    def sample(
        conversations: Sequence[list[dict[str, Any]]],
        *,
        temperature: float,
        seed: int,
        prefills: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Sampled]:
        """Answers each conversation once; a response depends on the seed and its place alone."""
        if not engines:
            with starting():
                from vllm import LLM  # pyright: ignore[reportMissingImports]

                keep_process_groups()
                engines.append(LLM(model=str(folder), **options))
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        prompts = _prompts(processor, conversations, prefills)
        expanded = _expanded(processor, prompts)
        longest = engines[0].llm_engine.model_config.max_model_len - 1
        answered = [i for i, ids in enumerate(expanded) if len(ids) <= longest]
        parameters = [
            SamplingParams(
                temperature=temperature,
                # All of them: what is left out is taken from the model's own settings.
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                max_tokens=max_tokens,
                logit_bias=bias,
                stop_token_ids=ends,
                seed=(seed * SEEDS_APART + i) % 2**63 if temperature > 0 else None,
                detokenize=False,
            )
            for i in answered
        ]
        with phases.within(phases.GENERATION):
            outputs = engines[0].generate([prompts[i] for i in answered], parameters, use_tqdm=_counting(on_batch))
        refuse_other_prompts([output.prompt_token_ids for output in outputs], [expanded[i] for i in answered], folder)
        results = [
            Sampled("", [], f"a prompt of {len(ids)} tokens, and vLLM takes {longest} (generation.max_model_tokens)")
            for ids in expanded
        ]
        for i, output in zip(answered, outputs, strict=True):
            ids = list(output.outputs[0].token_ids)
            truncated = bool(ids) and ids[-1] not in ends
            results[i] = Sampled(tokenizer.decode(ids, skip_special_tokens=True), ids, truncated=truncated)
        return results

    try:
        yield sample
    finally:
        while engines:
            close(engines.pop())


def close(llm: Any) -> None:
    """Ends an engine; its memory is free once nobody holds it."""
    llm.llm_engine.engine_core.shutdown()


def refuse_other_prompts(
    prompts: Sequence[Sequence[int]], expected: Sequence[Sequence[int]], folder: str | Path
) -> None:
    """Refuses prompts that vLLM read otherwise than the processor: the responses would be to other pictures.

    Raises:
        PrismError: with the difference of the first of them.
    """
    for i, (a, b) in enumerate(zip(prompts, expected, strict=True)):
        if list(a) != list(b):
            raise PrismError(
                f"vLLM read prompt {i} as {len(a)} tokens where the policy's processor makes {len(b)}",
                f"start it with the processor files in {folder}, and leave `mm_processor_kwargs` out of "
                "generation.options; generation.type=transformers has no second reader",
            )


def _prompts(
    processor: Any, conversations: Sequence[list[dict[str, Any]]], prefills: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Conversations as vLLM takes them: tokens with one placeholder an image, and the images."""
    tokenizer = processor.tokenizer
    beginnings = [""] * len(conversations) if prefills is None else prefills
    prompts = []
    for conversation, begun in zip(conversations, beginnings, strict=True):
        text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        token_ids = [*tokenizer(text)["input_ids"], *tokenizer(begun, add_special_tokens=False)["input_ids"]]
        images = [part["image"] for message in conversation for part in message["content"] if part["type"] == "image"]
        prompts.append({"prompt_token_ids": token_ids, **({"multi_modal_data": {"image": images}} if images else {})})
    return prompts


def _expanded(processor: Any, prompts: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Each prompt's tokens by the processor: as many placeholders for an image as it has pieces."""
    pictures = [prompt.get("multi_modal_data", {"image": []})["image"] for prompt in prompts]
    sizes = [(image.height, image.width) for images in pictures for image in images]
    counts = iter(processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens if sizes else [])
    mark = image_token(processor)
    return [
        [token for one in prompt["prompt_token_ids"] for token in [one] * (next(counts) if one == mark else 1)]
        for prompt in prompts
    ]


def _counting(on_batch: Callable[[int], None]) -> Callable[..., Any]:
    """A progress bar as vLLM wants one that only counts responses."""
    from tqdm import tqdm

    class Counting(tqdm):
        def __init__(self, *args: Any, desc: str = "", **kwargs: Any):
            super().__init__(*args, **kwargs, file=open(os.devnull, "w"), mininterval=0)  # noqa: SIM115
            self.counts = desc == "Processed prompts"

        def update(self, n: float | None = 1) -> bool | None:
            updated = super().update(n)
            if self.counts:
                on_batch(int(self.n))
            return updated

    return Counting
