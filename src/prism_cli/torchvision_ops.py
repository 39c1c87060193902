"""Lets `import torchvision` work beside a torch of another build.

Qwen3-VL's processor needs torchvision, of which some registries carry CUDA builds only. Beside a CPU torch its
compiled operators can't load, and its import then fails because `torchvision::nms` was never declared. Image processing
uses none of these operators, so declaring them is enough. Where the operators load, nothing is done.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class _DeclareMissingOps(MetaPathFinder):
    """Acts once, when torchvision is first imported, and leaves the import itself to the usual finders."""

    def find_spec(self, fullname, path, target=None):
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torchvision")
        library = next(Path(spec.origin).parent.glob("_C*.so"), None) if spec and spec.origin else None
        if library is not None:
            import torch

            try:
                torch.ops.load_library(library)
            except OSError:
                for name, schema in _SCHEMAS.items():
                    torch.library.define(name, schema)
        return None


def install() -> None:
    """Registers the hook; costs nothing until torchvision is imported."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _DeclareMissingOps())
