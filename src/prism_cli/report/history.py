"""The history: steps with where they came from, their time and their cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_cli.report.folder import MEASURING, PIPELINE, Step
from prism_cli.report.quantities import is_number

SHOWN_VERSIONS = {
    "prism": "prism-cli",
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "vllm": "vllm",
    "deepspeed": "deepspeed",
}


def lineage(step: Step) -> dict[str, Any]:
    """One row of "what was done"."""
    manifest = step.manifest
    versions = manifest.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    return {
        "id": step.id,
        "stage": manifest.get("stage", "–"),
        "source": _source(manifest.get("from")),
        "seed": "–" if manifest.get("seed") is None else manifest["seed"],
        "status": str(manifest.get("status", "unknown")),
        "created": _day(manifest.get("created")),
        "time": duration(manifest.get("seconds")),
        "versions": " · ".join(f"{name} {versions[key]}" for name, key in SHOWN_VERSIONS.items() if key in versions),
        "recipe": step.recipe,
    }


def overview(folder: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """The page's first line: how it stands, when it was begun, what it took; and whether the steps' versions differ."""
    try:
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    own = manifest if isinstance(manifest, Mapping) else {}
    states = [str(step.manifest.get("status", "unknown")) for step in steps]
    worst = next((state for state in ("running", "failed", "interrupted", "unknown") if state in states), "finished")
    seconds = [step.manifest.get("seconds") for step in steps]
    took = own.get("seconds") if own.get("stage") == PIPELINE else sum(s for s in seconds if is_number(s))
    usd = sum(u for step in steps if is_number(u := step.teacher.get("usd")))
    calls = sum(c for step in steps if is_number(c := step.teacher.get("calls")))
    stages = dict.fromkeys(str(s.manifest["stage"]) for s in steps if s.manifest.get("stage") not in (None, *MEASURING))
    facts = [" → ".join(stages), duration(took) if took else ""]
    facts += [f"{calls:,} teacher calls".replace(",", " ") if calls else "", f"${usd:.2f}" if usd else ""]
    facts += [_day(own.get("created") or (steps[0].manifest.get("created") if steps else None)).replace("–", "")]
    differ = len({lineage(step)["versions"] for step in steps}) > 1
    return {"status": str(own.get("status", worst)), "facts": [fact for fact in facts if fact], "differ": differ}


def starts(steps: Sequence[Step]) -> dict[str, str]:
    """Step → the step it started from, of the training steps."""
    return {
        step.id: Path(str(source.get("run"))).name
        for step in steps
        if isinstance(source := step.manifest.get("from"), Mapping) and "run" in source
    }


def teacher_table(steps: Sequence[Step]) -> dict[str, Any] | None:
    """Usage of the teacher, a row a step, a column a number in teacher.json."""
    used = [step for step in steps if step.teacher]
    columns = list(dict.fromkeys(name for step in used for name in step.teacher))
    rows = [(step.id, [_plain(step.teacher.get(name)) for name in columns]) for step in used]
    return {"columns": [name.replace("_", " ") for name in columns], "rows": rows} if rows else None


def duration(seconds: Any) -> str:
    """Seconds as people say them."""
    if not is_number(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _source(source: Any) -> str:
    if not isinstance(source, Mapping):
        return "–"
    if isinstance(runs := source.get("runs"), list):
        return ", ".join(map(_source, runs))
    checkpoint = source.get("checkpoint")
    # The full path would show the machine it was made on.
    run = Path(str(source.get("run")))
    return f"{run.parent.name}/{run.name}".lstrip("/") + (f" @ step {checkpoint}" if checkpoint is not None else "")


def _day(created: Any) -> str:
    return str(created or "–").replace("T", " ")[:16]


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
