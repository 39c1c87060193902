"""Sampling by transformers: a policy's responses to prompts, greedy or sampled, and its likelihoods of texts."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from transformers import GenerationConfig

from prism_cli import phases
from prism_cli.evaluation.backend import Sampled


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a response."""
    eos = model.generation_config.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or [tokenizer.eos_token_id])


def encode_prompts(processor: Any, conversations: Sequence[list[dict[str, Any]]]) -> Any:
    """Left-padded model inputs for conversations that end where the response begins; (B, P)."""
    return processor.apply_chat_template(
        list(conversations),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before is restored."""
    training = model.training
    model.eval()
    try:
        on_accelerator = model.device.type != "cpu"
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=on_accelerator):
            yield
    finally:
        model.train(training)


@phases.within(phases.GENERATION)
def sample_responses(
    model: Any,
    processor: Any,
    conversations: Sequence[list[dict[str, Any]]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    suppress: Sequence[int],
    batch_size: int,
    prefills: Sequence[str] | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Sampled]:
    """Answers each conversation once.

    The random state of the process is left as it was; the same seed gives the same responses.

    Args:
        model: The policy.
        processor: Its processor, left padding.
        conversations: Prompts with their images (`multimodal`).
        max_tokens: Longest response.
        temperature: 0 answers greedily.
        seed: Seed of the sampling.
        suppress: Tokens never emitted (image and video placeholders).
        batch_size: Responses generated at once.
        prefills: How each response begins; what is given back is what follows.
        on_batch: Called with the number of responses done.
    """
    tokenizer = processor.tokenizer
    ends = end_tokens(model, tokenizer)
    # All of them, since what is left unset is taken from the model's own settings and the library's (top_k = 50): the
    # policy's distribution is what is measured, and what its rollouts are drawn from.
    sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
    if temperature > 0:
        sampling |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    config = GenerationConfig(
        max_new_tokens=max_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=list(suppress),
        disable_compile=True,
        **sampling,
    )
    results: list[Sampled] = []
    with generating(model), torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        for start in range(0, len(conversations), batch_size):
            batch = slice(start, start + batch_size)
            inputs = encode_prompts(processor, conversations[batch])
            if prefills is not None:
                inputs = _begun(inputs, tokenizer, prefills[batch])
            inputs = inputs.to(model.device)
            output = model.generate(**inputs, generation_config=config)
            for row in output[:, inputs["input_ids"].shape[1] :].tolist():
                results.append(_until_end(row, ends, tokenizer))
            on_batch(len(results))
    return results


def _begun(inputs: Any, tokenizer: Any, prefills: Sequence[str]) -> Any:
    """The same inputs, each prompt followed by the beginning of its response, padded on the left again."""
    beginnings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prefills]
    masks = inputs["attention_mask"].bool()
    for key, filler, addition in (
        ("input_ids", tokenizer.pad_token_id, beginnings),
        ("attention_mask", 0, [[1] * len(ids) for ids in beginnings]),
        ("mm_token_type_ids", 0, [[0] * len(ids) for ids in beginnings]),
    ):
        if key in inputs:
            rows = [[*row[mask].tolist(), *more] for row, mask, more in zip(inputs[key], masks, addition, strict=True)]
            longest = max(map(len, rows))
            inputs[key] = torch.tensor([[filler] * (longest - len(row)) + row for row in rows])
    return inputs


def _until_end(row: list[int], ends: Sequence[int], tokenizer) -> Sampled:
    stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
    token_ids = row[:stop]
    truncated = bool(token_ids) and token_ids[-1] not in ends
    return Sampled(tokenizer.decode(token_ids, skip_special_tokens=True), token_ids, truncated=truncated)


def _cuda_devices(model: Any) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []


def log_likelihoods(
    model: Any,
    processor: Any,
    conversations: Sequence[list[dict[str, Any]]],
    texts: Sequence[str],
    batch_size: int,
) -> list[list[float]]:
    """Likelihoods of given texts under the policy: the log-probability of each token in nats, the end token's last.

    Args:
        model: The policy.
        processor: Its processor.
        conversations: Prompts with their images.
        texts: One text a prompt, scored as its whole response with the end token.
        batch_size: Texts a forward pass.
    """
    tokenizer = processor.tokenizer
    values: list[list[float]] = []
    with generating(model):
        for start in range(0, len(texts), batch_size):
            batch = slice(start, start + batch_size)
            inputs = encode_prompts(processor, conversations[batch]).to(model.device)
            prompt_length = inputs["input_ids"].shape[1]
            ends = [f"{text}{tokenizer.eos_token}" for text in texts[batch]]
            answers = tokenizer(
                ends, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False
            ).to(model.device)
            for key, addition in (
                ("input_ids", answers["input_ids"]),
                ("attention_mask", answers["attention_mask"]),
                ("mm_token_type_ids", torch.zeros_like(answers["input_ids"])),
            ):
                if key in inputs:
                    inputs[key] = torch.cat([inputs[key], addition], dim=1)
            logits = model(**inputs).logits[:, prompt_length - 1 : -1]
            # Row by row: float32 log-probabilities of a whole batch over a real vocabulary take gigabytes.
            for row, ids, mask in zip(logits, answers["input_ids"], answers["attention_mask"], strict=True):
                chosen = row.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
                values.append(chosen[mask.bool()].tolist())
    if not all(map(math.isfinite, chain.from_iterable(values))):
        raise ValueError("a log-likelihood is not finite")
    return values
