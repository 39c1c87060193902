"""Writes report.html: one page that says what was run, what it showed, and lets one look at responses."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from prism_cli.errors import CheckpointError
from prism_cli.report.causes import causes
from prism_cli.report.curves import plots
from prism_cli.report.drawing import chart
from prism_cli.report.folder import Step, read_steps
from prism_cli.report.gallery import gallery
from prism_cli.report.history import lineage, overview, starts, teacher_table
from prism_cli.report.pictures import drift_picture, pictures, tiles
from prism_cli.report.progress import progress
from prism_cli.report.quantities import Metric
from prism_cli.report.rollouts import frames, thinned
from prism_cli.report.showcase import Card, cards
from prism_cli.report.study import study_of
from prism_cli.report.tables import benchmarks, comparison
from prism_cli.report.verdicts import MOST_HEADLINES, Verdict, headlines, verdicts
from prism_cli.responses import Response
from prism_cli.runs.files import write_atomically

Parse = Callable[[str], Response]
IsCorrect = Callable[[str, Sequence[str], str], bool]

PICTURED = ("accuracy", "perception")
ROLLOUT_CHARACTERS = 2_000_000  # over all steps: a page stays one that can be mailed and opens on a phone


def write_report(
    folder: Path, title: str | None = None, parse: Parse | None = None, is_correct: IsCorrect | None = None
) -> Path:
    """Writes folder/report.html from the files of a run and returns its path. The page needs no network.

    Args:
        folder: A pipeline's folder (holding step folders), a study's or one step's. Files may be missing: a run in
            progress shows what there is.
        title: The page's heading; the folder's name if not given.
        parse: Splits a response into its parts (`Grammar.parse`); without it responses are shown as raw text.
        is_correct: Verdict on (answer, accepted answers, question); without it or `parse` nothing is marked right or
            wrong.

    Raises:
        CheckpointError: the folder holds no run, or can't be written.
    """
    path = folder / "report.html"
    page = render(folder, title, parse, is_correct)
    try:
        write_atomically(path, page)
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {error.strerror}", "make the folder writable, or copy it") from None
    return path


def render(
    folder: Path,
    title: str | None = None,
    parse: Parse | None = None,
    is_correct: IsCorrect | None = None,
    live: str | None = None,
) -> str:
    """The page's text.

    Args:
        folder: As in `write_report`, like `title`, `parse` and `is_correct`.
        live: A version: the page then asks the server it came from for a newer one.

    Raises:
        CheckpointError: the folder holds no run.
    """
    steps = read_steps(folder)
    shown = {
        **_measured(steps, parse),
        "curves": [(step.id, made) for step in steps if (made := [(p, chart(p.curves)) for p in plots(step.metrics)])],
        "showcases": [_shown(step.id, cards(step.showcase, parse, is_correct)) for step in steps if step.showcase],
        "rollouts": _rollouts(steps, parse, is_correct),
        "teachers": teacher_table(steps),
        "progress": [made for step in steps if (made := progress(step))],
        "studies": [study for step in steps if (study := study_of(step.id, step.study))],
    }
    state = overview(folder, steps)
    scripts = [_file("page.js"), *([_file("live.js")] if live else [])]
    page = _template().render(
        title=title or folder.resolve().name,
        steps=[lineage(step) for step in steps],
        overview=state,
        sections=_sections(shown),
        warnings=[
            (step.id, *map(warning.get, ("step", "cause", "cure"))) for step in steps for warning in step.warnings
        ],
        notes=[(step.id, note) for step in steps for note in dict.fromkeys(step.notes)],
        style=_file("page.css"),
        scripts=scripts,
        script_hashes=[_sha256(script) for script in scripts],
        live=live,
        followed="The run has ended." if state["status"] == "finished" else "This page follows the run.",
        **shown,
    )
    # JSON can hold half a character, which no file of text can.
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("prism_cli.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html.j2")


def _measured(steps: Sequence[Step], parse: Parse | None) -> dict[str, Any]:
    """Everything that evaluations and drift measurements say."""
    before = starts(steps)
    evaluations, distances, drift = [], [], False
    for step in steps:
        drifted = step.manifest.get("stage") == "drift"
        if not drifted and (table := comparison(step.id, step.summary, before, lambda one: not _is_distance(one))):
            evaluations.append((table, pictures(step.summary, _is_pictured)))
        if table := comparison(step.id, step.summary, before, (lambda _: True) if drifted else _is_distance):
            drawn = drift_picture(step.summary)
            distances.append((table, [drawn] if drawn else []))
            drift = drift or drawn is not None
    first, more = _verdicts(steps, before)
    galleries = [made for step in steps if (made := gallery(step, before, parse))]
    return {
        "tiles": next((made for step in reversed(steps) if (made := tiles(step.summary))), []),
        "evaluations": evaluations,
        "distances": distances,
        "drift_measured": drift,
        "causes": [made for s in steps if (made := causes(s.id, s.summary.get("attribution") or ()))],
        "benchmarks": [made for s in steps if (made := benchmarks(s.id, s.summary.get("benchmarks") or ()))],
        "verdicts": first,
        "more_verdicts": more,
        "galleries": [(made, filters(made.cards)) for made in galleries],
    }


def _verdicts(steps: Sequence[Step], before: Mapping[str, str]) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts that stand first, and those behind "more"."""
    of_steps = [(step, list(verdicts(step.summary))) for step in steps]
    first = [verdict for step, verdicts in of_steps for verdict in headlines(step.summary, before, verdicts)]
    every = [verdict for _, verdicts in of_steps for verdict in verdicts]
    first = first or every[:MOST_HEADLINES]
    return first, [verdict for verdict in every if verdict not in first]


def _is_distance(shown: Metric) -> bool:
    return shown.name.startswith(("drift", "teacher_logprob", "caption_distance", "extra_"))


def _is_pictured(shown: Metric) -> bool:
    return shown.name.startswith(PICTURED)


def _rollouts(steps: Sequence[Step], parse: Parse | None, is_correct: IsCorrect | None) -> list[tuple]:
    logged = [step for step in steps if step.rollouts]
    made = []
    for step in logged:
        turned = frames(thinned(step.rollouts, ROLLOUT_CHARACTERS // len(logged)), parse, is_correct)
        choices = filters([card for frame in turned for card in frame.cards])
        made.append((step.id, turned, choices, len(step.rollouts)))
    return made


def _shown(id: str, made: list[Card]) -> tuple:
    return id, made, filters(made)


def filters(shown: Sequence[Card]) -> dict[str, list[str]]:
    """The filters of cards; one without a choice is left out."""
    sides = [side for card in shown for side in card.sides if side.run]
    runs = list(dict.fromkeys(side.run for side in sides))
    sources = sorted({card.source for card in shown})
    verdicts = {verdict for side in sides for verdict in side.verdicts}
    return {
        "runs": runs if len(runs) > 1 else [],
        "verdicts": [one for one in ("right", "wrong", "malformed", "gained", "lost") if one in verdicts],
        "causes": sorted({side.cause for side in sides if side.cause}),
        "sources": sources if len(sources) > 1 else [],
    }


def _sections(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors of the sections there are, for the page's head."""
    named = [
        ("arms", "Arms", shown["studies"]),
        ("progress", "How far it is", shown["progress"]),
        ("stages", "Stages", shown["evaluations"]),
        ("showed", "What it showed", shown["verdicts"]),
        ("causes", "Causes", shown["causes"]),
        ("distance", "Distance", shown["distances"]),
        ("benchmarks", "Benchmarks", shown["benchmarks"]),
        ("done", "What was done", True),
        ("teacher", "Teacher", shown["teachers"]),
        ("curves", "Curves", shown["curves"]),
        ("responses", "Responses", shown["galleries"]),
        ("showcase-1", "Before and after", shown["showcases"]),
        ("rollouts-1", "Rollouts", shown["rollouts"]),
    ]
    return [(anchor, name) for anchor, name, there in named if there]


def _file(name: str) -> Markup:
    """A file of this room: our own text, so safe to inline."""
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
