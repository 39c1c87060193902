"""Which folder holds a judge or the model it is made from, and whether it fits the recipe; told without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism_cli.discriminator.saved import saved_discriminator
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.model_configs.families import family
from prism_cli.runs.references import resolve_model

JUDGE_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


def model_folder(reference: str, files: list[str] = JUDGE_FILES) -> Path:
    """The folder that a run, a folder or a hub id means; of the hub, these files are fetched.

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
        return Path(snapshot_download(reference, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"{reference!r} is no run, no folder and not to be had from the hub: {reason}",
            "give a finished run, a model's folder or a hub id",
        ) from None


def refuse_unsupported(config: Any, what: str) -> None:
    """Refuses models that no judge is made from.

    Raises:
        RecipeError: not a dense Qwen3-VL.
    """
    if family(config.model_type).dense_base:
        return
    already = family(config.model_type).discriminator == "moe"
    why = "a mixture of experts already" if already else "no model that transformers has a like mixture of experts of"
    raise RecipeError(
        f"{what} is a {config.model_type} model, {why}",
        "a judge is made from a dense Qwen3-VL (model_type qwen3_vl), such as Qwen/Qwen3-VL-2B-Instruct",
    )


def check_discriminator(section: Any) -> str:
    """What a recipe's judge is, in words; loads nothing and fetches nothing.

    Raises:
        CheckpointError: `discriminator.path` holds no judge.
        RecipeError: it is not what the recipe says.
    """
    made = f"{section.type}, warmed up on {_pairs(section.warmup)}"
    if section.path is None:
        return made
    if not Path(section.path).is_dir():
        if section.path.startswith((".", "/")) or section.path.count("/") != 1:
            raise CheckpointError(f"no discriminator in {section.path}", "leave out discriminator.path")
        return f"{section.type}, {section.path} from the hub"
    saved = saved_discriminator(Path(section.path))
    # A released judge says nothing of itself but what its body is.
    found: Mapping[str, Any] = saved.settings or {"kind": saved.kind}
    for key, name in (("type", "kind"), ("readout", "readout"), ("dropout", "dropout")):
        if name in found and found[name] != getattr(section, key):
            raise RecipeError(
                f"the discriminator in {section.path} has {key} {found[name]!r}, the recipe {getattr(section, key)!r}",
                f"set discriminator.{key} to {found[name]}",
            )
    if not saved.warm:
        return f"{made}, from {section.path}"
    return f"{section.type}, {section.path}{'' if saved.settings else ' (released; read as the recipe says)'}"


def samples_pairs(section: Any) -> bool:
    """Whether an align run will sample pairs to warm its judge up on."""
    local = Path(section.path) if section.path is not None else None
    cold = local is None or (local.is_dir() and not saved_discriminator(local).warm)
    return cold and section.warmup.data is None


def _pairs(warmup: Any) -> str:
    return f"{warmup.pairs} pairs" + (f" of {warmup.data.path}" if warmup.data is not None else "")
