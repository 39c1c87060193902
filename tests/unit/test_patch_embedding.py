"""Patch embedding as a matrix product equals the convolution it replaces, in every family that has one."""

import importlib

import pytest
import torch
from torch import nn

from prism_cli.patch_embedding import LinearPatchConv3d, embed_patches_linearly

# Family → its patch embedding's class and the class of its config.
FAMILIES = {
    "qwen2_vl": ("PatchEmbed", None),
    "qwen2_5_vl": ("Qwen2_5_VisionPatchEmbed", None),
    "qwen3_vl": ("Qwen3VLVisionPatchEmbed", "Qwen3VLVisionConfig"),
    "qwen3_vl_moe": ("Qwen3VLMoeVisionPatchEmbed", "Qwen3VLMoeVisionConfig"),
    "qwen3_5": ("Qwen3_5VisionPatchEmbed", "Qwen3_5VisionConfig"),
    "glm4v": ("Glm4vVisionPatchEmbed", "Glm4vVisionConfig"),
    "glm4v_moe": ("Glm4vMoeVisionPatchEmbed", "Glm4vMoeVisionConfig"),
}


def patch_embedding(family):
    layer, config = FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if config is None:
        return getattr(module, layer)(patch_size=4, temporal_patch_size=2, in_channels=3, embed_dim=24)
    configs = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    return getattr(module, layer)(
        getattr(configs, config)(patch_size=4, temporal_patch_size=2, in_channels=3, hidden_size=24)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_convolution(family):
    torch.manual_seed(0)
    embedding = patch_embedding(family)
    patches = torch.randn(50, 3 * 2 * 4 * 4)
    names = {name: weight.shape for name, weight in embedding.named_parameters()}
    convolved = embedding(patches)
    convolved.square().sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in embedding.named_parameters()}
    embedding.zero_grad()

    assert embed_patches_linearly(embedding) == 1
    multiplied = embedding(patches)
    multiplied.square().sum().backward()

    torch.testing.assert_close(multiplied, convolved, rtol=1e-6, atol=1e-6)
    for name, weight in embedding.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-5, atol=1e-5)
    assert {name: weight.shape for name, weight in embedding.named_parameters()} == names


def test_a_convolution_of_overlapping_or_padded_windows_stays_one():
    layers = nn.ModuleList(
        [
            nn.Conv3d(3, 4, 2, stride=1),
            nn.Conv3d(3, 4, 2, stride=2, padding=1),
            nn.Conv3d(4, 4, 2, stride=2, groups=2),
        ]
    )
    assert embed_patches_linearly(layers) == 0
    assert not any(isinstance(layer, LinearPatchConv3d) for layer in layers)


def test_an_input_of_several_patches_is_convolved():
    torch.manual_seed(0)
    layer = nn.Conv3d(3, 4, 2, stride=2)
    clip = torch.randn(2, 3, 4, 4, 4)
    convolved = layer(clip)
    embed_patches_linearly(layer)
    torch.testing.assert_close(layer(clip), convolved)
