"""What a folder says of the judge in it, read without torch: ours, warmed up or not, or one that its authors released.

A judge of ours is a transformers body, `head.safetensors` and `discriminator.json`. `created.json` beside them says how
it was made, and that it was not warmed up since. A released one is a transformers body with the head among its weights
as `v_head.1.weight`, and nothing that says how it is read.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from prism_cli.errors import CheckpointError
from prism_cli.model_configs.families import families_with, family

SETTINGS_FILE, HEAD_FILE, CREATED_FILE = "discriminator.json", "head.safetensors", "created.json"
_RELEASED_HEAD = re.compile(r"(^|\.)v_head\.(\d+\.)?weight$")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")


class SavedJudge(NamedTuple):
    """A judge on disk.

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


def saved_discriminator(folder: Path) -> SavedJudge:
    """What is in a folder.

    Raises:
        CheckpointError: no judge, or one whose weights are pickles.
    """
    if (folder / SETTINGS_FILE).is_file():
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return SavedJudge(settings, settings["kind"], not (folder / CREATED_FILE).is_file(), None)
    if (head := _released_head(folder)) is None:
        raise _no_judge(folder)
    return SavedJudge(None, _kind(folder), True, head)


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
    found = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    kind = family(found).discriminator
    if kind is None:
        known = ", ".join(families_with(lambda one: one.discriminator))
        raise CheckpointError(
            f"{config}: model_type is {found!r}, a discriminator's body is one of {known}",
            "give the folder of a discriminator built on Qwen3-VL",
        )
    return kind


def _no_judge(folder: Path) -> CheckpointError:
    if pickles := [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]:
        return CheckpointError(
            f"{folder}: the judge's head is in no safetensors file, only pickles are here ({', '.join(pickles[:3])}); "
            "opening a pickle runs the code in it, so they are never opened",
            "ask for, or convert it yourself to, safetensors with the head as v_head.1.weight",
        )
    return CheckpointError(
        f"{folder}: no discriminator here ({SETTINGS_FILE} is missing, and so is a head named v_head)",
        "give the `discriminator` folder of a run of `prism align` or `prism discriminator warmup`",
    )
