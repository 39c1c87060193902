"""The discriminator's body from a dense policy: sparse upcycling to a mixture of experts, or a plain copy.

Vision tower, attention, norms and embeddings are copied; the router starts at N(0, 0.02). Without noise the experts are
alike and their weights sum to one, so hidden states equal the dense ones.
"""

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel, Qwen3VLMoeConfig, Qwen3VLMoeModel
from transformers.initialization import no_init_weights

from prism_cli.discriminator.settings import Upcycling

ROUTER_STD = 0.02
BALANCE_COEFFICIENT = 0.01


def mixture_config(dense: Any, rule: Upcycling) -> Qwen3VLMoeConfig:
    """The config of the mixture.

    Args:
        dense: A `Qwen3VLConfig`.
        rule: Of the upcycling.
    """
    values = dense.to_dict()
    text, vision = values.pop("text_config"), values.pop("vision_config")
    for config in (values, text, vision):
        config.pop("model_type")
        config.pop("architectures", None)
    text |= {
        "num_experts": rule.experts,
        "num_experts_per_tok": rule.top_k,
        "moe_intermediate_size": text["intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": BALANCE_COEFFICIENT,
    }
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **values)


def mixture_weight(name: str, dense: Callable[[str], Tensor], rule: Upcycling) -> Tensor:
    """One weight of the mixture; which others were made before does not matter, nor is the global random state touched.

    Args:
        name: As in `Qwen3VLMoeModel.state_dict()`.
        dense: Name → weight of the dense body.
        rule: Of the upcycling.
    """
    layer, _, part = name.partition(".mlp.")
    if not part or not layer.startswith("language_model."):
        return dense(name)
    # Each weight draws from a generator of its own, so a file may be written in any order.
    digest = hashlib.sha256(f"{rule.seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    if part == "gate.weight":
        like = dense(f"{layer}.mlp.gate_proj.weight")
        drawn = torch.randn((rule.experts, like.shape[1]), generator=generator)
        return (ROUTER_STD * drawn).to(like)
    copied = {"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}[part]
    weights = [dense(f"{layer}.mlp.{projection}.weight") for projection in copied]
    return torch.stack(
        [torch.cat([_noisy(weight, rule, generator) for weight in weights]) for _ in range(rule.experts)]
    )


def _noisy(weight: Tensor, rule: Upcycling, generator: torch.Generator) -> Tensor:
    if not rule.noise:
        return weight
    std = rule.noise * float(weight.float().std()) if rule.noise_scale == "relative" else rule.noise
    drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
    return (weight + std * drawn).to(weight.dtype)


def dense_body(policy: Qwen3VLForConditionalGeneration | Qwen3VLModel) -> Qwen3VLModel:
    """A copy of the policy's body (no LM head); the policy is left alone."""
    return copy.deepcopy(_body(policy))


def upcycle(dense: Qwen3VLForConditionalGeneration | Qwen3VLModel, rule: Upcycling) -> Qwen3VLMoeModel:
    """A mixture-of-experts body that begins as the dense one, made in memory.

    Args:
        dense: The policy, or its body; left alone.
        rule: Of the upcycling.
    """
    body = _body(dense)
    with no_init_weights():
        moe: Any = Qwen3VLMoeModel._from_config(
            mixture_config(body.config, rule),
            dtype=body.dtype,
            attn_implementation=body.config._attn_implementation,
        )
        moe.to(body.device)
    weights = body.state_dict()
    with torch.no_grad():
        for name, weight in moe.state_dict().items():
            weight.copy_(mixture_weight(name, weights.__getitem__, rule))
    return moe.eval()


def _body(model: Qwen3VLForConditionalGeneration | Qwen3VLModel) -> Any:
    return model.model if isinstance(model, Qwen3VLForConditionalGeneration) else model
