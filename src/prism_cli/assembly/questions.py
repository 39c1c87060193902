"""What was asked in an evaluation, kept with its pictures for the report page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.assembly.data import load_data
from prism_cli.errors import PrismError
from prism_cli.progress import say
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.responses import read_settings
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import read_manifest, resolve_model

if TYPE_CHECKING:
    from datasets import Dataset


QUESTIONS_FILE = "questions.jsonl"


def keep_questions(folder: Path, rows: "Dataset", taught: Sequence[str | None] | None = None) -> None:
    """Writes questions.jsonl: those of an evaluation's questions that its page shows.

    Args:
        folder: The evaluation's, with its samples files.
        rows: All questions.
        taught: The teacher's text of each row, where there is one.
    """
    from prism_cli.report.gallery import chosen
    from prism_cli.trainers.rollout_log import PICTURES, thumbnail

    places = {id: i for i, id in enumerate(rows["id"])}
    lines = []
    for id in chosen(_samples(folder)):
        if id not in places:
            continue
        row = rows[places[id]]
        lines.append(
            {
                "id": id,
                "source": row["source"],
                "question": row["prompt"][-1]["content"],
                "answers": list(row["answers"] or ()),
                "images": [thumbnail(image) for image in (row["images"] or ())[:PICTURES]],
                "teacher": taught[places[id]] if taught else row.get("teacher_response"),
            }
        )
    write_atomically(folder / QUESTIONS_FILE, "".join(f"{json.dumps(line)}\n" for line in lines))


def find_questions(folder: Path) -> None:
    """Reads the questions of a finished evaluation again, where it kept none.

    What can't be read any more is left out: the page then names questions by their id.
    """
    manifest = read_manifest(folder)
    if manifest["stage"] != "eval" or manifest["status"] != "finished" or (folder / QUESTIONS_FILE).exists():
        return
    try:
        recipe = EvalRecipe.model_validate(manifest["recipe"])
        if recipe.data is None or not any(folder.glob("samples-*.jsonl")):
            return
        told = f"reading the questions of {folder} again, to show them on the report page"
        say(told)
        model = resolve_model(recipe.runs[0])[0]
        settings = read_settings(json.loads((model / "response.json").read_text(encoding="utf-8")))
        keep_questions(folder, load_data(recipe.data, settings))
    except (PrismError, OSError, ValueError):
        return


def _samples(folder: Path) -> Mapping[str, list[dict[str, Any]]]:
    return {path.stem.removeprefix("samples-"): list(_lines(path)) for path in sorted(folder.glob("samples-*.jsonl"))}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())
