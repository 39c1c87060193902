"""The discriminator's body from a dense policy: sparse upcycling to a mixture of experts, or a plain copy."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel, Qwen3VLMoeConfig, Qwen3VLMoeModel
from transformers.initialization import no_init_weights

ROUTER_STD = 0.02
BALANCE_COEFFICIENT = 0.01


@dataclass(frozen=True)
class Upcycling:
    """The rule by which a dense body becomes a mixture: each layer's MLP turns into `experts` noisy copies.

    Vision tower, attention, norms and embeddings are copied; the router starts at N(0, 0.02). Without noise the experts
    are alike and their weights sum to one, so hidden states equal the dense ones.

    Args:
        experts: Experts a layer; every layer is sparse.
        top_k: Experts a token visits.
        noise: Standard deviation of what is added to each expert's weights.
        noise_scale: Whether `noise` is in weight units, or in standard deviations of each weight matrix (saner for
            small models, whose weights are of another size).
        seed: Of noise and router; the global random state is not touched.

    Raises:
        ValueError: `top_k` is not between 1 and `experts`.
    """

    experts: int = 4
    top_k: int = 2
    noise: float = 0.01
    noise_scale: Literal["absolute", "relative"] = "absolute"
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k is {self.top_k}: must be between 1 and experts ({self.experts})")

    def config(self, dense: Any) -> Qwen3VLMoeConfig:
        """The mixture's config, from a `Qwen3VLConfig`."""
        values = dense.to_dict()
        text, vision = values.pop("text_config"), values.pop("vision_config")
        for config in (values, text, vision):
            config.pop("model_type")
            config.pop("architectures", None)
        text |= {
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "moe_intermediate_size": text["intermediate_size"],
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "router_aux_loss_coef": BALANCE_COEFFICIENT,
        }
        return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **values)

    def tensor(self, name: str, dense: Callable[[str], Tensor]) -> Tensor:
        """One weight of the mixture; which others were made before does not matter.

        Args:
            name: As in `Qwen3VLMoeModel.state_dict()`.
            dense: Name → weight of the dense body.
        """
        layer, _, part = name.partition(".mlp.")
        if not part or not layer.startswith("language_model."):
            return dense(name)
        # Each weight draws from a generator of its own, so a file may be written in any order.
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        if part == "gate.weight":
            like = dense(f"{layer}.mlp.gate_proj.weight")
            drawn = torch.randn((self.experts, like.shape[1]), generator=generator)
            return (ROUTER_STD * drawn).to(like)
        copied = {"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}[part]
        weights = [dense(f"{layer}.mlp.{projection}.weight") for projection in copied]
        return torch.stack(
            [torch.cat([self._noisy(weight, generator) for weight in weights]) for _ in range(self.experts)]
        )

    def _noisy(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        if not self.noise:
            return weight
        std = self.noise * float(weight.float().std()) if self.noise_scale == "relative" else self.noise
        drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
        return (weight + std * drawn).to(weight.dtype)


PAPER = Upcycling()
"""The paper's choices."""


def dense_body(policy: Qwen3VLForConditionalGeneration | Qwen3VLModel) -> Qwen3VLModel:
    """A copy of the policy's body (no LM head); the policy is left alone."""
    return copy.deepcopy(_body(policy))


def upcycle(dense: Qwen3VLForConditionalGeneration | Qwen3VLModel, how: Upcycling = PAPER) -> Qwen3VLMoeModel:
    """A mixture-of-experts body that begins as the dense one, made in memory.

    Args:
        dense: The policy, or its body; left alone.
        how: The rule.
    """
    body = _body(dense)
    with no_init_weights():
        moe: Any = Qwen3VLMoeModel._from_config(
            how.config(body.config),
            dtype=body.dtype,
            attn_implementation=body.config._attn_implementation,
        )
        moe.to(body.device)
    weights = body.state_dict()
    with torch.no_grad():
        for name, weight in moe.state_dict().items():
            weight.copy_(how.tensor(name, weights.__getitem__))
    return moe.eval()


def _body(model: Qwen3VLForConditionalGeneration | Qwen3VLModel) -> Any:
    return model.model if isinstance(model, Qwen3VLForConditionalGeneration) else model
