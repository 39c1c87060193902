"""The trackers of a run: `trainer.report_to`."""

import hashlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prism_cli.errors import RecipeError
from prism_cli.publishing.lineage import publishable
from prism_cli.runs.folder import Run

if TYPE_CHECKING:
    from prism_cli.trainers.trackers import Tracker

PACKAGES = ("tensorboard", "wandb", "trackio")
PROJECT = "prism"


def check(options: Mapping[str, Any]) -> None:
    """Finds missing packages before a model is loaded.

    Args:
        options: The recipe's `trainer`.

    Raises:
        RecipeError: a tracker's package is not installed.
    """
    for name in _names(options):
        if name in PACKAGES and find_spec(name) is None:
            raise RecipeError(
                f"trainer.report_to: {name} is not installed", f"pip install {name}, or leave trainer.report_to out"
            )


def left_to_transformers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same options without the trackers that `trackers` opens."""
    if "report_to" not in options:
        return dict(options)
    others = [name for name in _names(options) if name not in PACKAGES]
    return {**options, "report_to": others or "none"}


def trackers(options: Mapping[str, Any], run: Run) -> "tuple[Tracker, ...]":
    """The callbacks that send a run's metrics and rollouts to its trackers.

    Args:
        options: The recipe's `trainer`.
        run: The run's folder.
    """
    names = [name for name in _names(options) if name in PACKAGES]
    if not names:
        return ()
    from prism_cli.trainers.trackers import TRACKERS, TrackedRun

    manifest = run.manifest
    place = f"{manifest['name']}/{manifest['id']}"
    tracked = TrackedRun(
        run.folder,
        os.environ.get("WANDB_PROJECT") or os.environ.get("TRACKIO_PROJECT") or PROJECT,
        options.get("run_name") or place,
        hashlib.sha256(f"{place} {manifest['created']}".encode()).hexdigest()[:12],
        {"group": manifest["name"], "stage": manifest["stage"], **publishable(manifest["recipe"])},
    )
    return tuple(TRACKERS[name](tracked) for name in names)


def _names(options: Mapping[str, Any]) -> list[str]:
    """The names in `report_to`; `all` are those of ours that are installed."""
    given = options.get("report_to") or ()
    names = [given] if isinstance(given, str) else list(given)
    if "all" in names:
        return [name for name in PACKAGES if find_spec(name) is not None]
    return [name for name in names if name != "none"]
