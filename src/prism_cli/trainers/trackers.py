"""Trackers: transformers' own callbacks for metrics, opened so that a run has one identity, and tables of rollouts."""

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback

from prism_cli.errors import PrismError


class TrackedRun(NamedTuple):
    """A run as a tracker knows it.

    Attributes:
        folder: The run's.
        project: Under which it stands.
        name: Its name.
        id: The same whenever this run is continued, another one once it is started over.
        config: Its recipe, without addresses, paths and names of keys.
    """

    folder: Path
    project: str
    name: str
    id: str
    config: Mapping[str, Any]


class TensorBoard(TensorBoardCallback):
    """Event files in the run's folder, tensorboard/.

    Args:
        run: Which run.
    """

    def __init__(self, run: TrackedRun):
        super().__init__()
        self.run = run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the event file; what was logged beyond the checkpoint is done again, and hidden."""
        if not state.is_world_process_zero:
            return
        step = state.global_step
        folder = str(self.run.folder / "tensorboard")
        self.tb_writer = self._SummaryWriter(folder, purge_step=step + 1 if step else None)
        if not step:
            recipe = json.dumps(self.run.config, indent=2, default=str)
            self.tb_writer.add_text("recipe", f"```json\n{recipe}\n```")

    def rollouts(self, step: int, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Adds a text and the pictures of each prompt."""
        import numpy

        writer: Any = self.tb_writer
        for number, prompt in enumerate(prompts, 1):
            row = _row(prompt, {})
            texts = [f"{name}: {row[name]}" for name in ("question", "answers", "teacher")]
            texts += [f"{_verdict(rollout)}\n{rollout['text']}" for rollout in prompt["rollouts"]]
            # Indented text is shown as it is: a response may hold tags and Markdown.
            lines = "\n\n".join(texts).splitlines()
            writer.add_text(f"rollouts/{number}", "".join(f"    {line}\n" for line in lines), step)
            for place, picture in enumerate(_pictures(prompt), 1):
                writer.add_image(f"rollouts/{number}/{place}", numpy.asarray(picture), step, dataformats="HWC")


class WandB(WandbCallback):
    """A run of Weights & Biases, or with WANDB_MODE=offline its files in the run's folder, wandb/.

    Args:
        run: Which run.
    """

    def __init__(self, run: TrackedRun):
        super().__init__()
        self.run = run

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Opens the run, with the recipe in place of transformers' arguments, which hold addresses and paths.

        Raises:
            PrismError: it can't be opened.
        """
        from wandb.errors import CommError, UsageError

        self._initialized = True
        if not state.is_world_process_zero:
            return
        wandb: Any = self._wandb
        # Its metadata would hold command line, user and machine.
        quiet = wandb.Settings(
            disable_git=True, disable_code=True, console="off", x_disable_meta=True, quiet=True, host=""
        )
        try:
            wandb.init(
                project=self.run.project,
                name=self.run.name,
                id=self.run.id,
                group=self.run.config.get("group"),
                resume="allow",
                reinit="finish_previous",
                dir=str(self.run.folder),
                config=dict(self.run.config),
                settings=quiet,
            )
        except (UsageError, CommError) as error:
            raise PrismError(
                f"wandb can't be opened: {error}", "run `wandb login`, or set WANDB_MODE=offline"
            ) from None
        wandb.define_metric("train/global_step")
        wandb.define_metric("*", step_metric="train/global_step", step_sync=True)

    def rollouts(self, step: int, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table, a rollout a row."""
        wandb: Any = self._wandb
        wandb.log({"rollouts": _table(prompts, wandb), "train/global_step": step})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finishes the run."""
        super().on_train_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self._wandb.finish()


class Trackio(TrackioCallback):
    """A run of Trackio, kept where Trackio keeps its own ($TRACKIO_DIR).

    Args:
        run: Which run.
    """

    def __init__(self, run: TrackedRun):
        super().__init__()
        self.run = run

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Opens the run, with the recipe in place of transformers' arguments, which hold addresses and paths."""
        self._initialized = True
        if state.is_world_process_zero:
            self._trackio.init(
                project=self.run.project,
                name=self.run.name,
                config=dict(self.run.config),
                resume="allow" if state.global_step else "never",
                embed=False,
            )

    def rollouts(self, step: int, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table, a rollout a row."""
        self._trackio.log({"rollouts": _table(prompts, self._trackio), "train/global_step": step})


Tracker = TensorBoard | WandB | Trackio
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


# Rollouts as rows -----------------------------------------------------------------------------------------------------


def _table(prompts: Sequence[Mapping[str, Any]], package: Any) -> Any:
    """A table of wandb or Trackio, which take the same arguments."""
    rows = list(_rows(prompts, package.Image))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return package.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])


def _rows(prompts: Sequence[Mapping[str, Any]], picture: Callable[[Image.Image], Any]) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        pictures = _pictures(prompt)
        for rollout in prompt["rollouts"]:
            yield {"picture": picture(pictures[0]) if pictures else None, **_row(prompt, rollout)}


def _row(prompt: Mapping[str, Any], rollout: Mapping[str, Any]) -> dict[str, Any]:
    texts = {
        "question": prompt["question"],
        "answers": " or ".join(map(str, prompt.get("answers") or ())),
        "teacher": prompt.get("teacher") or "",
        "response": rollout.get("text", ""),
        "problem": rollout.get("problem") or "",
    }
    return texts | dict(rollout.get("rewards") or {})


def _verdict(rollout: Mapping[str, Any]) -> str:
    rewards = [f"{name} {value}" for name, value in (rollout.get("rewards") or {}).items()]
    return ", ".join([*([rollout["problem"]] if rollout.get("problem") else []), *rewards])


def _pictures(prompt: Mapping[str, Any]) -> list[Image.Image]:
    data = [image.partition(",")[2] for image in prompt.get("images") or ()]
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in data]
