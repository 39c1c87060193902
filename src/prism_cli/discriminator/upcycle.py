"""The discriminator's body from a dense policy: sparse upcycling to a mixture of experts, or a plain copy."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel, Qwen3VLMoeConfig, Qwen3VLMoeModel
from transformers.initialization import no_init_weights

ROUTER_STD = 0.02
BALANCE_COEFFICIENT = 0.01


def dense_body(policy: Qwen3VLForConditionalGeneration | Qwen3VLModel) -> Qwen3VLModel:
    """A copy of the policy's body (no LM head); the policy is left alone."""
    return copy.deepcopy(_body(policy))


def upcycle(
    dense: Qwen3VLForConditionalGeneration | Qwen3VLModel,
    experts: int = 4,
    top_k: int = 2,
    noise: float = 0.01,
    noise_scale: Literal["absolute", "relative"] = "absolute",
    seed: int = 0,
) -> Qwen3VLMoeModel:
    """A mixture-of-experts body that begins as the dense one: each layer's MLP becomes `experts` noisy copies.

    Vision tower, attention, norms and embeddings are copied; the router starts at N(0, 0.02). Without noise the experts
    are alike and their weights sum to one, so hidden states equal the dense ones.

    Args:
        dense: The policy, or its body.
        experts: Experts a layer; every layer is sparse.
        top_k: Experts a token visits.
        noise: Standard deviation of what is added to each expert's weights.
        noise_scale: Whether `noise` is in weight units, or in standard deviations of each weight matrix (saner for
            small models, whose weights are of another size).
        seed: Of noise and router; the global random state is not touched.

    Raises:
        ValueError: `top_k` is not between 1 and `experts`.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k is {top_k}: must be between 1 and experts ({experts})")
    body = _body(dense)
    with no_init_weights():
        moe: Any = Qwen3VLMoeModel._from_config(
            _moe_config(body, experts, top_k),
            dtype=body.dtype,
            attn_implementation=body.config._attn_implementation,
        )
        moe.to(body.device)
    generator = torch.Generator(body.device).manual_seed(seed)

    def noisy(weight: Tensor) -> Tensor:
        std = noise * float(weight.float().std()) if noise_scale == "relative" else noise
        drawn = torch.randn((experts, *weight.shape), generator=generator, device=weight.device)
        return (weight + std * drawn).to(weight.dtype)

    weights = {name: w for name, w in body.state_dict().items() if ".mlp." not in name or "language_model" not in name}
    for index, layer in enumerate(body.language_model.layers):
        prefix, mlp = f"language_model.layers.{index}.mlp", layer.mlp
        gate = moe.language_model.layers[index].mlp.gate.weight
        drawn = torch.randn(gate.shape, generator=generator, device=gate.device)
        weights[f"{prefix}.gate.weight"] = (ROUTER_STD * drawn).to(gate.dtype)
        gate_up = [noisy(mlp.gate_proj.weight.detach()), noisy(mlp.up_proj.weight.detach())]
        weights[f"{prefix}.experts.gate_up_proj"] = torch.cat(gate_up, dim=1)
        weights[f"{prefix}.experts.down_proj"] = noisy(mlp.down_proj.weight.detach())
    moe.load_state_dict(weights, strict=True)
    return moe.eval()


def _moe_config(body: Any, experts: int, top_k: int) -> Qwen3VLMoeConfig:
    dense = body.config.to_dict()
    text, vision = dense.pop("text_config"), dense.pop("vision_config")
    for config in (dense, text, vision):
        config.pop("model_type")
        config.pop("architectures", None)
    text |= {
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": text["intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": BALANCE_COEFFICIENT,
    }
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **dense)


def _body(model: Qwen3VLForConditionalGeneration | Qwen3VLModel) -> Any:
    return model.model if isinstance(model, Qwen3VLForConditionalGeneration) else model
