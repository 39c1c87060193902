"""Rollouts kept to be looked at: a few prompts of every n-th step, with pictures, texts and what they were worth."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback

from prism_cli.runs.files import write_atomically
from prism_cli.trainers.health import whole_lines

ROLLOUTS_FILE = "rollouts.jsonl"
PROMPTS, PER_PROMPT, PICTURES = 2, 4, 2
# However long a run and its texts are, this adds about 10 MB to its folder and page.
MOST_STEPS, MOST_CHARACTERS, SIDE = 60, 8000, 256
# A smaller picture is a drawing as a rule, which JPEG would blur.
DRAWING = 96


class RolloutLog(TrainerCallback):
    """Writes rollouts.jsonl; on resume, lines past the checkpoint are dropped first.

    Args:
        folder: The run's.
        every: Steps between those that are kept; the first one is, too. A run of more than 60 times that keeps fewer.
            None keeps no more.
        scores: What judged the batch in place of rewards: name → a value a row, NaN where there is none.
    """

    def __init__(
        self, folder: Path, every: int | None, scores: Callable[[], Mapping[str, Sequence[float]]] | None = None
    ):
        self.path, self.every, self.scores = folder / ROLLOUTS_FILE, every, scores
        self._last: int | None = None
        self._taught: dict[str, str | None] = {}

    def listening(
        self, answers: Callable[[list[dict]], Sequence[str | None]]
    ) -> Callable[[list[dict]], Sequence[str | None]]:
        """The same teacher's answers, which are then shown beside the rollouts of their rows."""

        def remembered(rows: list[dict]) -> Sequence[str | None]:
            texts = answers(rows)
            self._taught = {row["id"]: text for row, text in zip(rows, texts, strict=True)}
            return texts

        return remembered

    def on_train_begin(self, args, state, control, **kwargs):
        if self.every is not None:
            self.every = max(self.every, math.ceil(state.max_steps / MOST_STEPS))
        if not state.is_world_process_zero or not self.path.exists():
            return
        kept = [line for line in whole_lines(self.path) if line["step"] <= state.global_step]
        self._last = kept[-1]["step"] if kept else None
        write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def is_due(self, step: int) -> bool:
        """Whether rollouts of this step are kept: those of the first step and of every n-th, once a step."""
        if self.every is None:
            return False
        return self._last is None or step // self.every > self._last // self.every

    def keep(
        self,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        problems: Sequence[str | None],
        rewards: Mapping[str, Sequence[float]],
        lengths: Sequence[int],
    ) -> None:
        """Appends a line of this step's first prompts.

        Args:
            step: Which it is, from 1.
            rows: (N,) rollouts of a prompt side by side, as in all that follows.
            texts: (N,) responses.
            problems: (N,) why a response is malformed, else None.
            rewards: Name → (N,) values, NaN where unscored; `scores` take their place.
            lengths: (N,) tokens.
        """
        values = self.scores() if self.scores else rewards
        prompts = []
        for first, count in _groups(rows):
            rollouts = [
                {
                    "text": _cut(texts[i]),
                    "problem": problems[i],
                    "length": lengths[i],
                    "rewards": {name: _number(column[i]) for name, column in values.items()},
                }
                for i in range(first, first + min(count, PER_PROMPT))
            ]
            prompts.append(self._prompt(rows[first]) | {"rollouts": rollouts})
            if len(prompts) == PROMPTS:
                break
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "prompts": prompts}) + "\n")
        self._last = step

    def _prompt(self, row: Mapping[str, Any]) -> dict[str, Any]:
        taught = self._taught.get(row["id"])
        return {
            "id": row["id"],
            "source": row["source"],
            "question": _cut(row["prompt"][-1]["content"]),
            "answers": list(row["answers"] or ()),
            "images": [thumbnail(image) for image in (row["images"] or ())[:PICTURES]],
            "teacher": None if taught is None else _cut(taught),
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
    """The text, or its two ends: what is asked for stands at the end, what was seen at the start."""
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
