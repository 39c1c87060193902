"""Patch embedding as a matrix product: what convolution layers of vision towers compute, without a convolution.

Qwen-VL, GLM-4V and their like embed each patch by an `nn.Conv3d` whose stride is its kernel, on an input of exactly one
kernel: a matrix product. In bfloat16 several cuDNN versions have no fast kernel for it, and take 10³ to 10⁵ times as
long (pytorch#166643, transformers#45750).
"""

from torch import Tensor, nn
from torch.nn import functional


class LinearPatchConv3d(nn.Conv3d):
    """A Conv3d that computes inputs of one kernel as a matrix product; parameters and their names are the Conv3d's."""

    def forward(self, input: Tensor) -> Tensor:
        """Embeds patches.

        Args:
            input: (N, C, *kernel) patches; any other shape is convolved as usual.

        Returns:
            (N, hidden, 1, 1, 1).
        """
        if tuple(input.shape[2:]) != self.kernel_size:
            return super().forward(input)
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def embed_patches_linearly(model: nn.Module) -> int:
    """Has every patch embedding of a model computed as a matrix product, in place.

    Weights, their names and their shapes stay, so checkpoints and vLLM's weight sync do too.

    Args:
        model: Any model; only `nn.Conv3d` layers that look at non-overlapping patches are changed.

    Returns:
        How many layers were changed.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Conv3d and _is_patch_embedding(layer)]
    for layer in layers:
        layer.__class__ = LinearPatchConv3d
    return len(layers)


def _is_patch_embedding(layer: nn.Conv3d) -> bool:
    """Whether a layer sees each patch once: stride as wide as the kernel, no padding, dilation or groups."""
    plain = layer.padding in ("valid", (0, 0, 0)) and set(layer.dilation) == {1} and layer.groups == 1
    return plain and layer.stride == layer.kernel_size
