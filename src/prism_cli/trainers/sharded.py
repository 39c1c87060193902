"""Policies on several processes: a vision tower that all use in step, and shards gathered to full weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prism_cli import processes


def keep_vision_tower_in_step(model: Any) -> None:
    """Has a policy's vision tower read one blank picture, which counts for nothing, wherever a batch has none.

    Processes sum the gradients of all weights, and under ZeRO-3 fetch each layer's weights together: one that left out
    the tower, because its rows are text, would have the others wait for ever.

    Args:
        model: The policy; of the Qwen-VL families, whose tower takes patches and grid. Others are left as they are.
    """
    body: Any = getattr(model, "model", None)
    if processes.world_size() == 1 or not hasattr(getattr(body, "visual", None), "patch_embed"):
        return
    text_passes = _TextPasses()
    body.register_forward_pre_hook(text_passes.look, with_kwargs=True)

    def tie_tower(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | {"inputs_embeds": text_passes.add(body.visual, kwargs["inputs_embeds"])}

    # Between embedding and layers, where the tower stands in the passes of the other processes, backward too.
    body.language_model.register_forward_pre_hook(tie_tower, with_kwargs=True)


class _TextPasses:
    """Passes without a picture, tied to the vision tower's weights."""

    def __init__(self):
        self.without_picture = False

    def look(self, body: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Notes whether the pass that begins has a picture."""
        # While generating all processes hold full weights, and a token has no picture.
        generating = kwargs.get("past_key_values") is not None
        self.without_picture = kwargs.get("pixel_values") is None and not generating

    def add(self, tower: Any, embedded: Tensor) -> Tensor:
        """(B, T, H) as they are, tied to every weight of the tower."""
        if not self.without_picture:
            return embedded
        self.without_picture = False
        sizes = tower.config
        patches = sizes.spatial_merge_size**2
        width = sizes.in_channels * sizes.temporal_patch_size * sizes.patch_size**2
        pixels = torch.zeros(patches, width, dtype=tower.dtype, device=embedded.device)
        grid = torch.tensor([[1, sizes.spatial_merge_size, sizes.spatial_merge_size]], device=embedded.device)
        seen = tower(pixels, grid_thw=grid, return_dict=True)
        tensors = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or [])]
        return embedded + 0.0 * torch.stack([tensor.sum() for tensor in tensors]).sum().to(embedded.dtype)


@contextmanager
def full_weights(weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Weights that ZeRO-3 holds in shards, full as long as the context; without weights nothing happens."""
    chosen = list(weights)
    if not chosen:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(chosen):
        yield


def trained_elsewhere() -> None:
    """Lets models be loaded unsharded again after a training under DeepSpeed."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
