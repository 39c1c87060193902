"""The sizes of a model that memory and time follow from, read off its own class built without weights."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers.

    Attributes:
        hidden: Width.
        layers: How many.
        query: Width of all query heads together.
        keys: Width of all key heads together, as of all value heads.
        inner: Width of the MLP, of one expert where there are several.
        active: Experts a token visits; 0 for a plain MLP.
        weights: Of all layers and what belongs to them, embeddings left out.
        largest: Weights of the largest layer.
    """

    hidden: int
    layers: int
    query: int
    keys: int
    inner: int
    active: int
    weights: int
    largest: int


@dataclass(frozen=True)
class Shape:
    """A vision-language model's sizes.

    Attributes:
        text: The language model's layers.
        vision: The vision tower; None for a model without.
        vocabulary: Tokens the embedding knows.
        embedding: Weights of the embedding, and of the output where it has its own.
        head: Whether there is an output over the vocabulary (a discriminator has none).
        experts: Weights of all experts, which are part of `text.weights`.
        adapters: Weights a rank that adapters of the language layers have; with those of the vision tower.
        linear: Weights of the language model's linear layers: what 4 bits round.
        patch: Pixels of a patch's side.
        merge: Patches of a side that become one token.
        patch_values: Numbers that stand for a patch.
    """

    text: Tower
    vision: Tower | None
    vocabulary: int
    embedding: int
    head: bool
    experts: int
    adapters: tuple[int, int]
    linear: int
    patch: int
    merge: int
    patch_values: int

    @property
    def weights(self) -> int:
        """All weights."""
        return self.text.weights + (self.vision.weights if self.vision else 0) + self.embedding

    def patches(self, pixels: int) -> int:
        """Patches of a picture of so many pixels."""
        return pixels // self.patch**2 if self.vision else 0


def shape_of(config: Any, adapted: str, body: bool = False) -> Shape:
    """The sizes of the model that a transformers config describes; holds no weights and reads none.

    Args:
        config: Of a model that reads images and text.
        adapted: Regular expression of the modules that adapters go to.
        body: Without the output over the vocabulary, as a discriminator's body is.
    """
    import torch
    from transformers import AutoModel, AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = (AutoModel if body else AutoModelForImageTextToText).from_config(config)
    weights = {name: weight.numel() for name, weight in model.named_parameters()}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    vision = [name for name in weights if _is_vision(name)]
    embedding = model.get_input_embeddings().weight
    ends = {id(embedding)} | ({id(model.get_output_embeddings().weight)} if not body else set())
    outer = [name for name, weight in model.named_parameters() if id(weight) in ends]
    said = [name for name in weights if name not in vision and name not in outer]
    text, seen = config.get_text_config(), getattr(config, "vision_config", None)
    active = getattr(text, "num_experts_per_tok", 0) or 0
    language = {name: one for name, one in linear.items() if re.fullmatch(adapted, name)}
    return Shape(
        text=Tower(
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            query=text.num_attention_heads * _head(text),
            keys=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * _head(text),
            inner=text.moe_intermediate_size if active else text.intermediate_size,
            active=active,
            weights=sum(weights[name] for name in said),
            largest=_largest({name: weights[name] for name in said}),
        ),
        vision=_vision(seen, {name: weights[name] for name in vision}) if vision else None,
        vocabulary=len(embedding),
        embedding=sum(weights[name] for name in outer),
        head=not body,
        experts=sum(weights[name] for name in said if ".experts." in name),
        adapters=(_a_rank(language), _a_rank({n: m for n, m in linear.items() if not n.endswith("lm_head")})),
        linear=sum(
            module.weight.numel()
            for name, module in linear.items()
            if not _is_vision(name) and not name.endswith("lm_head")
        ),
        patch=getattr(seen, "patch_size", 1),
        merge=getattr(seen, "spatial_merge_size", 1),
        patch_values=getattr(seen, "in_channels", 3)
        * getattr(seen, "temporal_patch_size", 1)
        * getattr(seen, "patch_size", 1) ** 2,
    )


def _vision(config: Any, weights: dict[str, int]) -> Tower:
    width = config.hidden_size
    layers = getattr(config, "depth", None) or config.num_hidden_layers
    return Tower(width, layers, width, width, config.intermediate_size, 0, sum(weights.values()), _largest(weights))


def _head(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _is_vision(name: str) -> bool:
    return any(part.startswith(("visual", "vision")) for part in name.split("."))


def _largest(weights: dict[str, int]) -> int:
    """Weights of the largest layer: those whose names agree up to their first number."""
    layers: dict[str, int] = {}
    for name, count in weights.items():
        if numbered := re.match(r"(.*?\.\d+)\.", name):
            layers[numbered[1]] = layers.get(numbered[1], 0) + count
    return max(layers.values(), default=max(weights.values(), default=0))


def _a_rank(linear: dict[str, Any]) -> int:
    return sum(module.in_features + module.out_features for module in linear.values())
