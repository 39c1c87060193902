"""`transformers` where torchvision is built for another torch than there is, and decodes no picture: PIL does."""

import io

import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)

# isort: split
import torch
import torchvision.io
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor


def decode_image(data: torch.Tensor, mode: object = None) -> torch.Tensor:
    return pil_to_tensor(Image.open(io.BytesIO(data.numpy().tobytes())).convert("RGB"))


if __name__ == "__main__":
    torchvision.io.decode_image = decode_image
    from transformers.cli.transformers import main

    main()
