"""LoRA adapters of a model, and weights in 4 bits beneath them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prism_cli.errors import CheckpointError, RecipeError

VISION_TOWERS = (r".*\bvisual\b", r".*\bvision_\w+")  # regular expressions, from the start of a module's name


def refuse_four_bits() -> None:
    """Refuses 4-bit weights where they can't be computed with.

    Raises:
        RecipeError: bitsandbytes is not installed, or there is no NVIDIA GPU.
    """
    if find_spec("bitsandbytes") is None:
        raise RecipeError(
            "lora.bits: 4-bit weights need bitsandbytes, which is not installed", "pip install bitsandbytes"
        )
    if not torch.cuda.is_available():
        raise RecipeError(
            "lora.bits: 4-bit weights need an NVIDIA GPU, and torch sees none",
            "leave lora.bits out, or see `prism doctor --deep`",
        )


def nf4_config() -> Any:
    """The bitsandbytes config of weights in 4 bits.

    Raises:
        RecipeError: see `refuse_four_bits`.
    """
    refuse_four_bits()
    from transformers import BitsAndBytesConfig

    # The vision tower is not rounded: it is a tenth of the weights, and no adapter behind it mends a rounded picture.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[*VISION_TOWERS, "lm_head"],
    )


def has_adapters(model: Any) -> bool:
    """Whether a model is one with PEFT adapters put into it."""
    return hasattr(model, "merge_and_unload")


def in_four_bits(model: Any) -> bool:
    """Whether a model's weights were rounded to 4 bits when it was loaded."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def adapters_in_float32(model: Any) -> None:
    """Holds what is trained beside 4-bit weights in float32, before its optimiser is made.

    TRL rounds it to bfloat16 at the start, where small steps are lost, and PEFT does not when a run is continued: the
    two would end differently.
    """
    if in_four_bits(model):
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()


def save_adapter(model: Any, folder: Path) -> None:
    """Writes a model's adapters alone: adapter_config.json and adapter_model.safetensors, as PEFT opens them."""
    # Embeddings are never adapted; left to find out for itself PEFT asks the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the model's own card says what it is


def merge_adapter(model: Any, folder: Path) -> Any:
    """A model with the adapters in a folder merged into its weights.

    Args:
        model: What they were trained on.
        folder: What `save_adapter` or a checkpoint has written.

    Raises:
        CheckpointError: they can't be read, or belong to another model.
    """
    from peft import PeftModel

    try:
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        return adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"the adapters in {folder} can't be put into their model: {reason}",
            "take another checkpoint, or the run's final model",
        ) from None
