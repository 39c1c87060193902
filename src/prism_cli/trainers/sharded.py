"""What several processes ask of a policy: eyes that open for text too, and weights that are whole for a moment."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prism_cli import processes


def keep_eyes_open(model: Any) -> None:
    """Has a policy's vision tower read one blank picture, which counts for nothing, wherever a batch has none.

    Processes sum the gradients of all weights, and under ZeRO-3 fetch each layer's weights together: one that left out
    the tower, because its rows are text, would have the others wait for ever.

    Args:
        model: The policy; of the Qwen-VL families, whose tower takes patches and grid. Others are left as they are.
    """
    body: Any = getattr(model, "model", None)
    if processes.world_size() == 1 or not hasattr(getattr(body, "visual", None), "patch_embed"):
        return
    blind = _Blind()
    body.register_forward_pre_hook(blind.look, with_kwargs=True)

    def look_at_nothing(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"inputs_embeds": blind.add(body.visual, kwargs["inputs_embeds"])}

    # Between embedding and layers, where the tower stands in the passes of the other processes, backward too.
    body.language_model.register_forward_pre_hook(look_at_nothing, with_kwargs=True)


class _Blind:
    """Whether the pass under way has no picture."""

    def __init__(self):
        self.blind = False

    def look(self, body: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        # While generating all processes hold whole weights, and a token has no picture.
        generating = kwargs.get("past_key_values") is not None
        self.blind = kwargs.get("pixel_values") is None and not generating

    def add(self, tower: Any, embedded: Tensor) -> Tensor:
        """(B, T, H) as they are, tied to every weight of the tower."""
        if not self.blind:
            return embedded
        self.blind = False
        sizes = tower.config
        patches = sizes.spatial_merge_size**2
        width = sizes.in_channels * sizes.temporal_patch_size * sizes.patch_size**2
        pixels = torch.zeros(patches, width, dtype=tower.dtype, device=embedded.device)
        grid = torch.tensor([[1, sizes.spatial_merge_size, sizes.spatial_merge_size]], device=embedded.device)
        seen = tower(pixels, grid_thw=grid, return_dict=True)
        tensors = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or [])]
        return embedded + 0.0 * torch.stack([tensor.sum() for tensor in tensors]).sum().to(embedded.dtype)


@contextmanager
def whole_weights(weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Weights that ZeRO-3 holds in shards, whole as long as the context; without weights nothing happens."""
    chosen = list(weights)
    if not chosen:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(chosen):
        yield


def trained_elsewhere() -> None:
    """Lets models be loaded whole again after a training under DeepSpeed."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
