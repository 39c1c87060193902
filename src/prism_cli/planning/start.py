"""The model that a planned stage starts from, read off config files alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.model_configs import config_folder

if TYPE_CHECKING:  # it imports torch
    from prism_cli.models import Policy

TYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Start(NamedTuple):
    """The model that a stage starts from.

    Attributes:
        config: transformers' config of the policy.
        pixels: Of a picture, at most.
        weight_bytes: Bytes of a weight as loaded.
        parts: How many parts a response has.
        saved: It lies in a folder or on the hub, where vLLM can open it; a tiny model doesn't.
        attention: Name of the attention.
    """

    config: Any
    pixels: int
    weight_bytes: int
    parts: int
    saved: bool = True
    attention: str = "sdpa"


def loaded_start(policy: "Policy") -> Start:
    """The start of a stage whose policy is loaded."""
    config = policy.model.config
    return Start(
        config,
        _pixels(policy.processor.image_processor.size),
        policy.model.dtype.itemsize,
        len(policy.grammar.parts),
        bool(policy.model.name_or_path),
        config._attn_implementation,
    )


def saved_start(folder: Path, default_pixels: int) -> Start:
    """The start of a stage from a run's model, read from its config files.

    Args:
        folder: The model's.
        default_pixels: Largest picture where the processor says nothing of it.

    Raises:
        CheckpointError: response.json can't be read.
        RecipeError: no config.
    """
    try:
        size = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))["size"]
    except (OSError, ValueError, KeyError):
        size = _processor_size(folder, default_pixels)
    try:
        parts = len(json.loads((folder / "response.json").read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / 'response.json'} can't be read: {error}", "name a finished run") from None
    config = config_of(str(folder), None)
    return Start(config, _pixels(size), bytes_per_weight(config), parts)


def _processor_size(folder: Path, default_pixels: int) -> dict[str, int]:
    try:
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        return settings["image_processor"]["size"]
    except (OSError, ValueError, KeyError):
        return {"longest_edge": default_pixels}


def _pixels(size: Mapping[str, int]) -> int:
    return int(size["longest_edge"])


def bytes_per_weight(config: Any) -> int:
    """Bytes of a weight in the type that a config names."""
    return TYPES.get(str(getattr(config, "dtype", None) or "float32").removeprefix("torch."), 4)


def config_of(path: str, revision: str | None) -> Any:
    """A model's config: of a folder, of a shipped one, of the hub's cache, else of the hub.

    Raises:
        RecipeError: it is not to be had.
    """
    from transformers import AutoConfig

    folder = config_folder(path)
    try:
        return AutoConfig.from_pretrained(
            str(folder) if folder else path, revision=None if folder else revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"no config of {path!r} to plan by: {reason}", "give a model's folder, or a hub id where there is a network"
        ) from None
