"""Discriminators and dense models on disk, read without torch: their folders, and their kinds.

A discriminator of ours is a transformers body, `head.safetensors` and `discriminator.json`. `created.json` beside them
says how it was made, and that it was not warmed up since. A released one is a transformers body with the head among its
weights as `v_head.1.weight`, and nothing that says how it is read.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.model_configs.families import families_with, family
from prism_cli.runs.references import resolve_model

SETTINGS_FILE, HEAD_FILE, CREATED_FILE = "discriminator.json", "head.safetensors", "created.json"
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")
_RELEASED_HEAD = re.compile(r"(^|\.)v_head\.(\d+\.)?weight$")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")


class SavedDiscriminator(NamedTuple):
    """A discriminator on disk.

    Attributes:
        settings: What discriminator.json says; None for a released one.
        kind: `moe`, `dense` or `text_only`; of a released one as its config says.
        warm: Whether it was warmed up.
        head: For a released one, the file of its head and its name there.
    """

    settings: dict[str, Any] | None
    kind: str
    warm: bool
    head: tuple[Path, str] | None


def model_folder(reference: str, files: tuple[str, ...] = MODEL_FILES) -> Path:
    """The folder of a model or discriminator.

    Args:
        reference: A run, a folder or a hub id.
        files: Patterns of the files that are fetched from the hub.

    Raises:
        CheckpointError: a run without a model.
        RecipeError: nothing there.
    """
    base = Path(reference.partition("@")[0])
    if (base / "run.json").is_file():
        return resolve_model(reference)[0]
    if Path(reference).is_dir():
        return Path(reference)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(reference, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"{reference!r} is no run, no folder and not to be had from the hub: {reason}",
            "give a finished run, a model's folder or a hub id",
        ) from None


def refuse_no_base(model_type: str, name: str) -> None:
    """Refuses models that no discriminator is made from.

    Args:
        model_type: Of the model's config.
        name: The model, as the user knows it.

    Raises:
        RecipeError: not a dense Qwen3-VL.
    """
    if family(model_type).dense_base:
        return
    already = family(model_type).discriminator == "moe"
    why = "a mixture of experts already" if already else "no model that transformers has a like mixture of experts of"
    raise RecipeError(
        f"{name} is a {model_type} model, {why}",
        "a discriminator is made from a dense Qwen3-VL (model_type qwen3_vl), such as Qwen/Qwen3-VL-2B-Instruct",
    )


def saved_discriminator(folder: Path) -> SavedDiscriminator:
    """The discriminator in a folder.

    Raises:
        CheckpointError: none there, or one whose weights are pickles.
    """
    if (folder / SETTINGS_FILE).is_file():
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return SavedDiscriminator(settings, settings["kind"], not (folder / CREATED_FILE).is_file(), None)
    if (head := _released_head(folder)) is None:
        raise _no_discriminator(folder)
    return SavedDiscriminator(None, _kind(folder), True, head)


def _released_head(folder: Path) -> tuple[Path, str] | None:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                names = [name for name in file.keys() if _RELEASED_HEAD.search(name)]  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise CheckpointError(f"{path} can't be read: {error}", "fetch or write it again") from None
        if names:
            return path, names[0]
    return None


def _kind(folder: Path) -> str:
    config = folder / "config.json"
    model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    kind = family(model_type).discriminator
    if kind is None:
        known = ", ".join(families_with(lambda one: one.discriminator))
        raise CheckpointError(
            f"{config}: model_type is {model_type!r}, a discriminator's body is one of {known}",
            "give the folder of a discriminator built on Qwen3-VL",
        )
    return kind


def _no_discriminator(folder: Path) -> CheckpointError:
    if pickles := [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]:
        return CheckpointError(
            f"{folder}: the discriminator's head is in no safetensors file, only pickles are here "
            f"({', '.join(pickles[:3])}); opening a pickle runs the code in it, so they are never opened",
            "ask for, or convert it yourself to, safetensors with the head as v_head.1.weight",
        )
    return CheckpointError(
        f"{folder}: no discriminator here ({SETTINGS_FILE} is missing, and so is a head named v_head)",
        "give the `discriminator` folder of a run of `prism align` or `prism discriminator warmup`",
    )
