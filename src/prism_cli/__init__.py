"""PRISM: three-stage post-training of vision-language models (SFT, align, RL)."""

from importlib.metadata import version

from prism_cli import torchvision_ops

__version__ = version("prism-cli")

torchvision_ops.install()
