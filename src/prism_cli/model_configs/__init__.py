"""The architecture numbers of the models that shipped recipes name, so that they can be looked at offline."""

import json
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent


def config_folder(reference: str) -> Path | None:
    """A folder with the config.json of a model: a local folder, or the shipped one of a hub id; None where there is
    neither."""
    known = reference in shipped_configs() and SHIPPED / reference
    return next((folder for folder in (Path(reference), known) if folder and (folder / "config.json").is_file()), None)


def model_config(reference: str) -> dict[str, Any] | None:
    """Contents of config.json of a local folder or a shipped hub id; None where there is neither, or it can't be
    read."""
    folder = config_folder(reference)
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError):
        return None


def shipped_configs() -> list[str]:
    """The hub ids whose config.json comes with the package."""
    return sorted(path.parent.relative_to(SHIPPED).as_posix() for path in SHIPPED.glob("*/*/config.json"))
