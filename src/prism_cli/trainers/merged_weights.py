"""Weights of a model with LoRA adapters as vLLM is given them: merged tensor by tensor, beside the trained model.

TRL merges adapters into the base and takes them out again at each step; in bfloat16 every round leaves the base a
rounding further from where it was.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

# A layer's own weight in PEFT's names, and the weight itself of what is trained whole beside adapters.
BASE, COPY = ".base_layer", "modules_to_save.default."


def merged_weights(
    model: Any, gathered: Callable[[Sequence[Tensor]], AbstractContextManager[Any]]
) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a PEFT model's weights, as the model without adapters calls them; nothing is written to it.

    All processes go through it to the end: under ZeRO-3 a layer's weights are gathered while it is its turn.

    Args:
        model: With LoRA adapters.
        gathered: A context in which weights are unsharded.
    """
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, weight in model.named_parameters():
        if model.prefix in name or "original_module" in name:
            continue
        layer = layers.get(name.removesuffix(f"{BASE}.weight")) if name.endswith(f"{BASE}.weight") else None
        own = [] if layer is None else [one for n, one in layer.named_parameters() if model.prefix in n]
        with gathered([weight, *own]), torch.no_grad():
            yield _plain(name), weight.data if layer is None else _merged(weight.data, layer)


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(BASE, "").replace(COPY, "")


def _merged(weight: Tensor, layer: Any) -> Tensor:
    """W + B · A · scale, summed in float32 and rounded once."""
    deltas = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters if adapter in layer.lora_A]
    return sum((delta.float() for delta in deltas), weight.float()).to(weight.dtype)
