"""References to runs, models and checkpoints on disk: `RUN`, `RUN@step`, `RUN@N`."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from prism_cli.errors import CheckpointError, PrismError

# In a run of align or warm-up: the discriminator.
DISCRIMINATOR = "discriminator"
# Written last: a checkpoint, or a warm-up, without it was cut short.
COMPLETE = "complete.json"
# Ends the folder's name of what `--shrink` made.
SCALED_DOWN = "-scaled-down"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a run's manifest.

    Raises:
        CheckpointError: there is none, or it is not one.
    """
    try:
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not {"stage", "status", "recipe"} <= manifest.keys():
            raise ValueError("it is no manifest of a run")
        return manifest
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a run folder (no run.json)", "give the folder of a finished run"
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{folder / 'run.json'} can't be read: {error}", "restore it or start over with --fresh"
        ) from None


def resolve_model(reference: str) -> tuple[Path, dict[str, Any]]:
    """Finds the model a reference names and the lineage to record.

    Args:
        reference: A step's folder (its final model), `RUN@step id` in a pipeline's folder, or `STEP FOLDER@N` for the
            checkpoint of step N.

    Raises:
        CheckpointError: nothing there, not finished, or incomplete; the hint names what is.
    """
    base, _, selected = reference.partition("@")
    folder = Path(base)
    if selected and not selected.isdigit():
        folder, selected = folder / selected, ""
    if not folder.is_dir():
        raise CheckpointError(f"no run folder {folder}", known_runs())
    if not (folder / "run.json").is_file() or read_manifest(folder)["stage"] == "run":
        steps = [p.parent.name for p in folder.glob("*/run.json") if (p.parent / "model").is_dir()]
        hint = f"name a step: {', '.join(f'{base}@{s}' for s in sorted(steps))}" if steps else known_runs()
        raise CheckpointError(f"{folder} is not a training step's folder", hint)
    if selected:
        path = folder / "checkpoints" / f"checkpoint-{selected}"
        if not (path / COMPLETE).is_file():
            there = sorted(checkpoint_step(p.parent) for p in folder.glob(f"checkpoints/*/{COMPLETE}"))
            raise CheckpointError(f"{folder} has no complete checkpoint of step {selected}", f"there are: {there}")
        if (path / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{path} holds LoRA adapters, not a full model",
                f"name the run's final model, {folder}, or merge them: prism export {reference}",
            )
        return path, {"run": str(folder), "checkpoint": int(selected), "created": read_manifest(folder)["created"]}
    manifest = read_manifest(folder)
    status = manifest["status"]
    if status == "finished" and not (folder / "model").is_dir():
        raise CheckpointError(f"the {manifest['stage']} run in {folder} has no model", "give a run of sft, align or rl")
    if status != "finished":
        raise CheckpointError(
            f"the run in {folder} is {status}, so it has no final model yet", "finish it first: rerun its command"
        )
    return folder / "model", {"run": str(folder), "checkpoint": None, "finished": manifest["finished"]}


def newest_finished(stage: str, root: Path = Path("runs")) -> Path | None:
    """The newest finished run of a stage below `root`, scaled-down ones left out, or None."""
    finished = []
    for path in [*root.glob("*/run.json"), *root.glob("*/*/run.json")]:
        if any(part.endswith(SCALED_DOWN) for part in path.parts):
            continue
        try:
            manifest = read_manifest(path.parent)
        except CheckpointError:
            continue  # an unreadable run is no candidate, and no reason to stop a command that doesn't name it
        if manifest["stage"] == stage and manifest["status"] == "finished":
            finished.append((manifest["finished"], path.parent))
    return max(finished, default=(None, None))[1]


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` in a folder; those that a kill left half-written are deleted."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete.append(path)
        else:
            shutil.rmtree(path)
    return max(complete, key=checkpoint_step, default=None)


def checkpoint_step(path: Path) -> int:
    """The optimiser step of `checkpoint-N`."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    if match is None:
        raise PrismError(f"{path} is not named checkpoint-N")
    return int(match[1])


def known_runs(root: Path = Path("runs")) -> str:
    """A hint that names the first runs below a folder."""
    runs = sorted({str(p.parent) for pattern in ("*/run.json", "*/*/run.json") for p in root.glob(pattern)})
    return f"runs here: {', '.join(runs[:8])}" if runs else "there are no runs here yet; start with `prism sft`"
