"""Writes report.html: one page that says what was run, what it showed, and lets one look at responses."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from prism_cli.report.curves import plots
from prism_cli.report.folder import Step, read_steps
from prism_cli.report.quantities import Metric, clear_winner, is_number, metrics_of, spread
from prism_cli.report.rollouts import frames
from prism_cli.report.showcase import cards
from prism_cli.report.study import arms_compared
from prism_cli.report.verdicts import verdicts
from prism_cli.responses import Response
from prism_cli.runs import write_atomically

SHOWN_VERSIONS = {"prism": "prism-cli", "torch": "torch", "transformers": "transformers", "trl": "trl"}


def write_report(
    folder: Path,
    title: str | None = None,
    parse: Callable[[str], Response] | None = None,
    is_correct: Callable[[str, Sequence[str], str], bool] | None = None,
) -> Path:
    """Writes folder/report.html from the files of a run and returns its path. The page needs no network.

    Args:
        folder: A pipeline's folder (holding step folders) or one step's. Files may be missing: a run in progress shows
            what there is.
        title: The page's heading; the folder's name if not given.
        parse: Splits a response into its parts (`Grammar.parse`); without it responses are shown as raw text.
        is_correct: Judges (answer, accepted answers, question); without it or `parse` nothing is marked right or wrong.

    Raises:
        CheckpointError: the folder holds no run.
    """
    steps = read_steps(folder)
    environment = Environment(
        loader=PackageLoader("prism_cli.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    style = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    drawn = {step.id: [(plot, _json(plot.figure)) for plot in plots(step.metrics)] for step in steps}
    kept = [(step.id, frames(step.rollouts, parse, is_correct)) for step in steps if step.rollouts]
    scripts = [*(_draws() if any(drawn.values()) else ()), *([_script("rollouts.js")] if kept else ())]
    found = [verdict for step in steps for verdict in verdicts(step.summary)]
    page = environment.get_template("page.html.j2").render(
        title=title or folder.resolve().name,
        steps=[_lineage(step) for step in steps],
        evaluations=[
            *(_evaluation(step) for step in steps if step.summary.get("runs")),
            *(_table("Arms compared", step.id, *arms_compared(step.study)) for step in steps if step.study.get("arms")),
        ],
        verdicts=[verdict for verdict in found if verdict.headline] or found,
        more_verdicts=[verdict for verdict in found if not verdict.headline] if any(v.headline for v in found) else [],
        teachers=_teacher_table(steps),
        curves=[(step_id, made) for step_id, made in drawn.items() if made],
        showcases=[(step.id, cards(step.showcase, parse, is_correct)) for step in steps if step.showcase],
        rollouts=kept,
        warnings=[
            (step.id, *map(warning.get, ("step", "cause", "cure"))) for step in steps for warning in step.warnings
        ],
        notes=[(step.id, note) for step in steps for note in dict.fromkeys(step.notes)],
        style=style,
        scripts=scripts,
        script_hashes=[_sha256(script) for script in scripts],
    )
    path = folder / "report.html"
    # JSON can hold half a character, which no file of text can.
    write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def _lineage(step: Step) -> dict[str, Any]:
    """One row of "what was done"."""
    manifest = step.manifest
    versions = manifest.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    return {
        "id": step.id,
        "stage": manifest.get("stage", "–"),
        "source": _source(manifest.get("from")),
        "seed": manifest.get("seed", "–"),
        "status": str(manifest.get("status", "unknown")),
        "created": str(manifest.get("created") or "–").replace("T", " ")[:16],
        "time": _duration(manifest.get("seconds")),
        "versions": " · ".join(f"{name} {versions[key]}" for name, key in SHOWN_VERSIONS.items() if key in versions),
        "recipe": step.recipe,
    }


def _source(source: Any) -> str:
    if not isinstance(source, Mapping):
        return "–"
    if isinstance(runs := source.get("runs"), list):
        return ", ".join(map(_source, runs))
    checkpoint = source.get("checkpoint")
    return f"{source.get('run')}" + (f" @ step {checkpoint}" if checkpoint is not None else "")


def _duration(seconds: Any) -> str:
    if not is_number(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _evaluation(step: Step) -> dict[str, Any]:
    """The stage table of one evaluation: runs down, metrics across."""
    runs, columns = step.summary["runs"], metrics_of(step.summary)
    settings = step.summary.get("settings") or {}
    winners = {
        shown: clear_winner(shown, [run.get("metrics", {}).get(shown.name) for run in runs]) for shown in columns
    }
    rows = [
        (run.get("id", "–"), [_cell(c, run.get("metrics", {}).get(c.name), winners[c] == i) for c in columns])
        for i, run in enumerate(runs)
    ]
    told = "Bold: its interval lies apart from every other run's."
    if settings:
        told += " Settings: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()) + "."
    return _table("Stages compared", step.id, columns, rows, told)


def _table(
    heading: str, id: str, columns: Sequence[Metric], rows: list[tuple[str, list[dict[str, Any]]]], told: str
) -> dict[str, Any]:
    """A table of runs down and metrics across, each quantity's name over its decodings."""
    spans: list[list[Any]] = []
    for shown in columns:
        if spans and spans[-1][0] == shown.quantity:
            spans[-1][1] += 1
        else:
            spans.append([shown.quantity, 1, shown.unit])
    return {"heading": heading, "id": id, "spans": spans, "columns": columns, "rows": rows, "told": told}


def _cell(shown: Metric, cell: Mapping[str, Any] | None, best: bool) -> dict[str, Any]:
    if not cell or not is_number(cell.get("value")):
        return {"value": "–", "spread": "", "n": None, "best": False}
    return {"value": shown.number(cell["value"]), "spread": spread(shown, cell), "n": cell.get("n"), "best": best}


def _teacher_table(steps: Sequence[Step]) -> dict[str, Any] | None:
    """Usage of the teacher, a row a step, a column a number in teacher.json."""
    used = [step for step in steps if step.teacher]
    columns = list(dict.fromkeys(name for step in used for name in step.teacher))
    rows = [(step.id, [_plain(step.teacher.get(name)) for name in columns]) for step in used]
    return {"columns": [name.replace("_", " ") for name in columns], "rows": rows} if rows else None


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)


def _json(figure: Mapping[str, Any]) -> Markup:
    """JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(figure, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _draws() -> list[Markup]:
    """plotly.js and the lines that draw."""
    return [Markup(get_plotlyjs()), _script("draw.js")]


def _script(name: str) -> Markup:
    """A script of this room: our own text, so safe to inline."""
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
