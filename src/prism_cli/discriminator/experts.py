"""Experts that compute in the type of an autocast, as other layers do; transformers' take that of their weights."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

AUTOCAST = "grouped_mm_autocast"


def experts_forward(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """(T, H) of (T, H): transformers' grouped matrix products; its arguments."""
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind):
        return grouped_mm_experts_forward(module, hidden, chosen, weights)
    dtype = torch.get_autocast_dtype(kind)
    cast = copy.copy(module)  # the same experts around other weights, which lead gradients back to the module's
    cast._parameters = {name: weight.to(dtype) for name, weight in module._parameters.items()}
    return grouped_mm_experts_forward(cast, hidden.to(dtype), chosen, weights).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(AUTOCAST, experts_forward)
