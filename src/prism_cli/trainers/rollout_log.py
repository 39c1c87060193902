"""The rollout log: a few prompts of every n-th step, with pictures, texts and scores."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli.runs.files import write_atomically
from prism_cli.trainers.health import complete_lines

ROLLOUTS_FILE = "rollouts.jsonl"
PROMPTS, PER_PROMPT, PICTURES = 2, 4, 2
# However long a run and its texts are, this adds about 10 MB to its folder and page.
MOST_STEPS, MOST_CHARACTERS, SIDE = 60, 8000, 256
# A smaller picture is a drawing as a rule, which JPEG would blur.
DRAWING = 96


Listener = Callable[[int, list[dict[str, Any]]], None]


class Rollouts(NamedTuple):
    """Rollouts of a step, those of a prompt side by side.

    Attributes:
        rows: (N,) rows of the data.
        texts: (N,) responses.
        problems: (N,) why a response is malformed, else None.
        scores: Name → (N,) rewards or scores, NaN where there is none.
        lengths: (N,) tokens.
        teacher: Row id → the teacher's text, None where it has none.
    """

    rows: Sequence[Mapping[str, Any]]
    texts: Sequence[str]
    problems: Sequence[str | None]
    scores: Mapping[str, Sequence[float]]
    lengths: Sequence[int]
    teacher: Mapping[str, str | None] = {}


class RolloutLog(TrainerCallback):
    """Writes rollouts.jsonl; on resume, lines past the checkpoint are dropped first.

    Args:
        folder: The run's.
        every: Steps between those that are kept; the first one is, too. A run of more than 60 times that keeps fewer.
            None keeps no more.
        listeners: Called with the step and its prompts as they are written.
    """

    def __init__(self, folder: Path, every: int | None, listeners: Sequence[Listener] = ()):
        self.path, self.every, self.listeners = folder / ROLLOUTS_FILE, every, listeners
        self._last: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drops lines past the checkpoint."""
        if self.every is not None:
            self.every = max(self.every, math.ceil(state.max_steps / MOST_STEPS))
        if not state.is_world_process_zero or not self.path.exists():
            return
        earlier = [line for line in complete_lines(self.path) if line["step"] <= state.global_step]
        self._last = earlier[-1]["step"] if earlier else None
        write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in earlier))

    def is_due(self, step: int) -> bool:
        """Whether rollouts of this step are kept: those of the first step and of every n-th, once a step."""
        if self.every is None:
            return False
        return self._last is None or step // self.every > self._last // self.every

    def keep(self, step: int, rollouts: Rollouts) -> None:
        """Appends a line of this step's first prompts.

        Args:
            step: Which it is, from 1.
            rollouts: All of the step's.
        """
        prompts = []
        for first, count in _groups(rollouts.rows):
            kept = [_rollout(rollouts, i) for i in range(first, first + min(count, PER_PROMPT))]
            prompts.append(_prompt(rollouts.rows[first], rollouts.teacher) | {"rollouts": kept})
            if len(prompts) == PROMPTS:
                break
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "prompts": prompts}) + "\n")
        self._last = step
        for listen in self.listeners:
            listen(step, prompts)


def _rollout(rollouts: Rollouts, i: int) -> dict[str, Any]:
    return {
        "text": _cut(rollouts.texts[i]),
        "problem": rollouts.problems[i],
        "length": rollouts.lengths[i],
        "rewards": {name: _number(column[i]) for name, column in rollouts.scores.items()},
    }


def _prompt(row: Mapping[str, Any], teacher: Mapping[str, str | None]) -> dict[str, Any]:
    answer = teacher.get(row["id"])
    return {
        "id": row["id"],
        "source": row["source"],
        "question": _cut(row["prompt"][-1]["content"]),
        "answers": list(row["answers"] or ()),
        "images": [thumbnail(image) for image in (row["images"] or ())[:PICTURES]],
        "teacher": None if answer is None else _cut(answer),
    }


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """(start, length) of each run of rows with one id."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i]["id"] != rows[start]["id"]:
            yield start, i - start
            start = i


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _cut(text: str) -> str:
    """The text, or its two ends: the caption stands at the start, the answer at the end."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def thumbnail(picture: Image.Image) -> str:
    """A data URL of the picture, scaled down to a thumbnail."""
    small, kind = picture.convert("RGB"), "png" if max(picture.size) <= DRAWING else "jpeg"
    small.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    small.save(written, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
