"""Lineage: the runs a model comes from, oldest first, without paths and addresses of the machine they ran on."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.errors import CheckpointError
from prism_cli.progress import progress
from prism_cli.runs.references import checkpoint_step, read_manifest

# Places and addresses of this machine.
PRIVATE_KEYS = ("output", "endpoint", "api_key_env", "store", "allow_urls")
PATH_KEYS = ("path", "from", "runs", "base")
ADDRESS = re.compile(r"(?!hf:)[a-z][a-z0-9+.-]*://\S+", re.I)
NO_MEASURE = ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "epoch")


class Step(NamedTuple):
    """One training run of the chain.

    Attributes:
        stage: sft, align or rl.
        id: Its name in the pipeline.
        checkpoint: The checkpoint the next one started from, or None for its final model.
        recipe: What it was trained by, see `publishable`.
        held_out: Held-out metrics of those weights, as logged in training.
    """

    stage: str
    id: str
    checkpoint: int | None
    recipe: dict[str, Any]
    held_out: dict[str, float]

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits: the same for the same published recipe, on any machine."""
        text = json.dumps(self.recipe, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def data(self) -> list[str]:
        """Names of the training rows' sources."""
        return _data_names(self.recipe.get("data"))

    @property
    def teacher(self) -> str | None:
        """The teacher's name, or None where none was asked."""
        return _teacher_name(self.recipe.get("teacher"))

    def facts(self) -> dict[str, Any]:
        """The step as JSON-able values."""
        named = {"recipe_digest": self.digest, "data": self.data, "teacher": self.teacher}
        return {"stage": self.stage, "id": self.id, "checkpoint": self.checkpoint, **named, "held_out": self.held_out}


class Lineage(NamedTuple):
    """The origin of a model.

    Attributes:
        base: Hub id or folder name of the pretrained model; None for a randomly initialised one, or an unknown start.
        start: The same in words.
        steps: Training runs, oldest first; the last one is the model's own.
    """

    base: str | None
    start: str
    steps: list[Step]


def lineage_of(folder: Path, checkpoint: int | None = None) -> Lineage:
    """The chain of runs that ends in a run's final model or checkpoint.

    Args:
        folder: The run's folder.
        checkpoint: Step of its checkpoint, or None for the final model.
    """
    steps: list[Step] = []
    while True:
        manifest = read_manifest(folder)
        recipe = publishable(manifest["recipe"])
        metrics = held_out_metrics(folder, manifest, checkpoint)
        steps.insert(0, Step(manifest["stage"], manifest["id"], checkpoint, recipe, metrics))
        source = manifest.get("from")
        if source is None:
            return Lineage(*_start(recipe.get("model")), steps)
        folder, checkpoint = Path(source["run"]), source["checkpoint"]
        if not _still_there(folder, source):
            return Lineage(None, f"the run {folder.name}, of which no record was kept", steps)


def _still_there(folder: Path, source: Mapping[str, Any]) -> bool:
    """Whether a folder still holds the run that was started from, and not one done again since."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return False
    return all(manifest.get(key) == source[key] for key in ("finished", "created") if key in source)


def _start(model: Mapping[str, Any] | None) -> tuple[str | None, str]:
    if model is None:
        return None, "an unknown model"
    if "path" not in model:
        return None, "a randomly initialised tiny Qwen3-VL"
    revision = f" at {model['revision']}" if model.get("revision") else ""
    return model["path"], model["path"] + revision


def held_out_metrics(folder: Path, manifest: Mapping[str, Any], checkpoint: int | None) -> dict[str, float]:
    """Held-out metrics of training at a checkpoint or of the final model, without the `eval/` in front."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    # A line that a kill cut short has no newline at its end.
    lines = [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]
    if checkpoint is None and manifest.get("best"):
        checkpoint = checkpoint_step(Path(manifest["best"]["checkpoint"]))
    measured = [line for line in lines if any(name.startswith("eval/") for name in line)]
    if checkpoint is not None:
        measured = [line for line in measured if line["step"] == checkpoint]
    last = measured[-1] if measured else {}
    held_out = {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")}
    return {name: value for name, value in held_out.items() if name not in NO_MEASURE}


# What may be published ------------------------------------------------------------------------------------------------


def publishable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without where things lie: addresses and key names are left out, paths cut to their last name."""
    return {key: _published(value, path=key in PATH_KEYS) for key, value in recipe.items() if key not in PRIVATE_KEYS}


def _published(value: Any, path: bool = False) -> Any:
    match value:
        case Mapping():
            return publishable(value)
        case list() | tuple():
            return [_published(item, path) for item in value]
        case str() if ADDRESS.fullmatch(value):
            return "an address"
        case str() if _is_path(value, path):
            return Path(value).name
        case _:
            return value


def _is_path(text: str, named_so: bool) -> bool:
    """Whether a text is a place on this machine and no hub id; a sentence that begins with a slash is neither."""
    if "\n" in text or "://" in text:
        return False
    if text.startswith(("/", "~/", "./", "../")):
        return named_so or " " not in text or Path(text).exists()
    return named_so and Path(text.partition("@")[0]).exists()


def _data_names(data: Mapping[str, Any] | None) -> list[str]:
    if data is None:
        return []
    if "sources" in data:
        return [name for source in data["sources"].values() for name in _data_names(source)]
    return [f"world {data['world']}" if "world" in data else data["path"]]


def _teacher_name(teacher: Mapping[str, Any] | None) -> str | None:
    if teacher is None:
        return None
    if "world" in teacher:
        return f"world {teacher['world']} ({teacher['variant']})"
    if teacher["type"] == "dataset":
        return "answers that stand in the data"
    return teacher.get("name") or teacher.get("model") or "a model behind an endpoint, not named"


# Evaluations ----------------------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """An evaluation of a model by `prism eval`.

    Attributes:
        data: Names of the questions' sources.
        settings: Questions, samples, temperature.
        metrics: Name → `value`, `low`, `high` (95 %) and `n`.
    """

    data: list[str]
    settings: dict[str, Any]
    metrics: dict[str, dict[str, Any]]


def evaluations_of(folder: Path, checkpoint: int | None) -> Iterator[Evaluation]:
    """Finished evaluations of a run's model that lie beside the run."""
    key = "finished" if checkpoint is None else "created"
    state = read_manifest(folder).get(key)
    if state is None:
        return  # still in training: what was measured is not of these weights
    for path in sorted(folder.parent.glob("*/summary.json")):
        try:
            manifest = read_manifest(path.parent)
        except CheckpointError:
            continue  # what is no run has no place in a card
        if manifest["stage"] != "eval" or manifest["status"] != "finished":
            continue
        summary = json.loads(path.read_text(encoding="utf-8"))
        for source, measured in zip(manifest["from"]["runs"], summary["runs"], strict=True):
            same = (Path(source["run"]).name, source["checkpoint"]) == (folder.name, checkpoint)
            if same and source.get(key) == state and measured["metrics"]:
                data = _data_names(publishable(manifest["recipe"]).get("data"))
                yield Evaluation(data, summary["settings"], measured["metrics"])


def weights_of(folder: Path) -> dict[str, str]:
    """File → SHA-256 of a model's weights, as `sha256sum` prints it."""
    files = sorted(folder.glob("*.safetensors"))
    digests = {}
    with progress("hashing the weights", len(files)) as on_progress:
        for number, path in enumerate(files, 1):
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            on_progress(number)
    return digests
