"""Sends what a run's folder gets to a tracker: metrics under their names in metrics.jsonl, rollouts with pictures."""

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from transformers import TrainerCallback

from prism_cli.errors import PrismError
from prism_cli.trainers.rollout_log import ROLLOUTS_FILE

METRICS_FILE = "metrics.jsonl"


class Tracked(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
        folder: The run's.
        project: Under which it stands.
        name: What it is called.
        id: The same whenever this run is continued, another one once it is started over.
        config: Its recipe, without addresses, paths and names of keys.
    """

    folder: Path
    project: str
    name: str
    id: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Where metrics and rollouts go."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what was logged at a step."""

    def rollouts(self, step: int, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Takes what was kept of a step, as it stands in rollouts.jsonl."""

    def end(self) -> None:
        """Sees to it that all is written."""


class Tracking(TrainerCallback):
    """Passes on every new line of metrics.jsonl and rollouts.jsonl; stands behind the callbacks that write them.

    Args:
        run: Which run.
        openers: Each opens a tracker at a step: 0 for a new run.

    Raises:
        PrismError: a tracker can't be opened.
    """

    def __init__(self, run: Tracked, openers: Sequence[Callable[[Tracked, int], Tracker]]):
        self.run, self.openers = run, openers
        self.trackers: list[Tracker] = []
        self._read: dict[str, int] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.trackers = [opened(self.run, state.global_step) for opened in self.openers]

    def on_step_begin(self, args, state, control, **kwargs):
        # Not before: when training begins, lines past the checkpoint are still dropped.
        if self.trackers and not self._read:
            self._read = {name: _size(self.run.folder / name) for name in (METRICS_FILE, ROLLOUTS_FILE)}

    def on_log(self, args, state, control, **kwargs):
        self._pass_on()

    def on_train_end(self, args, state, control, **kwargs):
        self._pass_on()
        for tracker in self.trackers:
            tracker.end()

    def _pass_on(self) -> None:
        if not self._read:
            return
        for line in self._new_lines(METRICS_FILE):
            values = {name: value for name, value in line.items() if name not in ("step", "seconds")}
            for tracker in self.trackers:
                tracker.metrics(line["step"], values)
        for line in self._new_lines(ROLLOUTS_FILE):
            for tracker in self.trackers:
                tracker.rollouts(line["step"], line["prompts"])

    def _new_lines(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.run.folder / name
        if _size(path) <= self._read[name]:
            return
        with open(path, "rb") as file:
            file.seek(self._read[name])
            for line in file:
                if line.endswith(b"\n"):
                    self._read[name] += len(line)
                    yield json.loads(line)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# Trackers -------------------------------------------------------------------------------------------------------------


class TensorBoard:
    """Event files in the run's folder, tensorboard/."""

    def __init__(self, run: Tracked, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # What was logged beyond the checkpoint is done again.
        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            self.writer.add_text("recipe", f"```json\n{json.dumps(run.config, indent=2, default=str)}\n```")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar each."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def rollouts(self, step: int, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Adds a text and the pictures of each prompt."""
        import numpy

        for number, prompt in enumerate(prompts, 1):
            told = [
                f"{name}: {value}"
                for name, value in _row(prompt, {}).items()
                if name in ("question", "answers", "teacher")
            ]
            said = [f"{_worth(rollout)}\n{rollout['text']}" for rollout in prompt["rollouts"]]
            # Indented text is shown as it is: a response may hold tags and Markdown.
            whole = "\n\n".join([*told, *said])
            self.writer.add_text(f"rollouts/{number}", "".join(f"    {line}\n" for line in whole.splitlines()), step)
            for place, picture in enumerate(_pictures(prompt), 1):
                self.writer.add_image(f"rollouts/{number}/{place}", numpy.asarray(picture), step, dataformats="HWC")

    def end(self) -> None:
        """Closes the event file."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, or with WANDB_MODE=offline its files in the run's folder, wandb/."""

    def __init__(self, run: Tracked, step: int):
        import wandb
        from wandb.errors import CommError, UsageError

        self.wandb = wandb
        # Its metadata would hold command line, user and machine.
        quiet = wandb.Settings(
            disable_git=True, disable_code=True, console="off", x_disable_meta=True, quiet=True, host=""
        )
        try:
            self.run = wandb.init(
                project=run.project,
                name=run.name,
                id=run.id,
                group=run.config.get("group"),
                resume="allow",
                reinit="finish_previous",
                dir=str(run.folder),
                config=dict(run.config),
                settings=quiet,
            )
        except (UsageError, CommError) as error:
            raise PrismError(
                f"wandb can't be opened: {error}", "run `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs them at this step."""
        self.run.log(dict(values), step=step)

    def rollouts(self, step: int, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table, a rollout a row."""
        rows = list(_rows(prompts, self.wandb.Image))
        # Of what type its releases want these differs.
        columns: Any = list(dict.fromkeys(name for row in rows for name in row))
        cells: Any = [[row.get(name) for name in columns] for row in rows]
        table = self.wandb.Table(columns=columns, data=cells)
        self.run.log({"rollouts": table}, step=step)

    def end(self) -> None:
        """Finishes the run."""
        self.run.finish()


class Trackio:
    """A run of Trackio, kept where Trackio keeps its own ($TRACKIO_DIR)."""

    def __init__(self, run: Tracked, step: int):
        import trackio  # pyright: ignore[reportMissingImports]

        self.trackio = trackio
        self.run = trackio.init(
            project=run.project,
            name=run.name,
            config=dict(run.config),
            resume="allow" if step else "never",
            embed=False,
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs them at this step."""
        self.trackio.log(dict(values), step=step)

    def rollouts(self, step: int, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table, a rollout a row."""
        rows = list(_rows(prompts, self.trackio.Image))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = self.trackio.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])
        self.trackio.log({"rollouts": table}, step=step)

    def end(self) -> None:
        """Finishes the run."""
        self.trackio.finish()


TRACKERS: dict[str, Callable[[Tracked, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


# Rollouts as rows -----------------------------------------------------------------------------------------------------


def _rows(prompts: Sequence[Mapping[str, Any]], picture: Callable[[Image.Image], Any]) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        shown = _pictures(prompt)
        for rollout in prompt["rollouts"]:
            yield {"picture": picture(shown[0]) if shown else None, **_row(prompt, rollout)}


def _row(prompt: Mapping[str, Any], rollout: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "question": prompt["question"],
        "answers": " or ".join(map(str, prompt.get("answers") or ())),
        "teacher": prompt.get("teacher") or "",
        "response": rollout.get("text", ""),
        "problem": rollout.get("problem") or "",
    }
    return found | dict(rollout.get("rewards") or {})


def _worth(rollout: Mapping[str, Any]) -> str:
    rewards = [f"{name} {value}" for name, value in (rollout.get("rewards") or {}).items()]
    return ", ".join([*([rollout["problem"]] if rollout.get("problem") else []), *rewards])


def _pictures(prompt: Mapping[str, Any]) -> list[Image.Image]:
    data = [image.partition(",")[2] for image in prompt.get("images") or ()]
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in data]
