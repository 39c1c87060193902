"""A study's arms: each metric's mean over seeds, beside it the paired difference from the baseline, time and cost."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prism_cli.report.history import duration
from prism_cli.report.pictures import Forest, forest
from prism_cli.report.quantities import Metric, is_number, metric, metrics_of
from prism_cli.report.tables import Cell, cell, difference

# What a study is about as a rule; the rest is in the table.
PICTURED = ("accuracy/sampled", "accuracy/greedy", "perception/sampled", "perception/greedy")


class Arm(NamedTuple):
    """One arm.

    Attributes:
        name: As the study calls it.
        note: Whether the others are compared with it, and what seeds it lacks.
        seconds: Its own training, a seed.
        usd: What its teacher cost, over all seeds.
        cells: A metric each.
    """

    name: str
    note: str
    seconds: str
    usd: str
    cells: list[Cell]


class Study(NamedTuple):
    """A study.

    Attributes:
        id: Its step.
        columns: The metrics.
        arms: Those with a result.
        cost: Whether any of them cost money.
        failed: (arm and seed, error).
        pictures: Gains with their intervals.
        caption: Of the table.
    """

    id: str
    columns: list[Metric]
    arms: list[Arm]
    cost: bool
    failed: list[tuple[str, str]]
    pictures: list[Forest]
    caption: str


def study_of(id: str, study: Mapping[str, Any]) -> Study | None:
    """The study of study.json, as far as it is done; None where it is no study."""
    arms = {str(name): arm for name, arm in _mapping(study.get("arms")).items() if isinstance(arm, Mapping)}
    failed = [(str(name), str(error)) for name, error in _mapping(study.get("failed")).items()]
    if not arms and not failed:
        return None
    baseline = str(study.get("baseline", ""))
    columns = metrics_of({"runs": list(arms.values())})
    seeds = study.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else 0
    rows = [
        Arm(
            name,
            _note(name == baseline, arm, count),
            _seconds(arm),
            _usd(arm),
            [_cell(c, arm, name == baseline) for c in columns],
        )
        for name, arm in arms.items()
    ]
    made = [_picture(shown, arms, baseline) for name in PICTURED if (shown := metric(name)) in columns]
    cost = any(arm.usd != "–" for arm in rows)
    caption = (
        f"Means over {count} seed{'s' if count != 1 else ''}. Below a value: the difference from {baseline}, seed by "
        "seed, ± its 95 % interval over seeds; ✓ where every seed agrees beyond its own interval over questions. Time "
        "is an arm's own training, a seed"
    )
    caption += "; cost is its teacher's, over all seeds." if cost else "."
    return Study(id, columns, rows, cost, failed, [one for one in made if one and one.bars], caption)


def _cell(shown: Metric, arm: Mapping[str, Any], is_baseline: bool) -> Cell:
    values = _mapping(_mapping(arm.get("metrics")).get(shown.name))
    if not values:
        return Cell("–")
    plain = cell(shown, {"value": _mapping(values.get("mean")).get("value")})
    if is_baseline:
        return plain
    text, kind = difference(shown, _mapping(values.get("over_seeds")))
    return plain._replace(change=f"{text}{' ✓' if values.get('agree') else ''}", kind=kind)


def _picture(shown: Metric, arms: Mapping[str, Mapping[str, Any]], baseline: str) -> Forest | None:
    rows = []
    for name, arm in arms.items():
        values = _mapping(_mapping(arm.get("metrics")).get(shown.name))
        if name != baseline and (over := _mapping(values.get("over_seeds"))):
            text, kind = difference(shown, over)
            rows.append((name, over, Cell(text, kind=kind)))
    return forest(shown, f"Gain in {shown.words} over {baseline}, {shown.unit or 'its own unit'}", rows, 0.0)


def _note(is_baseline: bool, arm: Mapping[str, Any], count: int) -> str:
    seeds = arm.get("seeds")
    fewer = f"{len(seeds)} of {count} seeds" if isinstance(seeds, list) and len(seeds) < count else ""
    return ", ".join(filter(None, ("baseline" if is_baseline else "", fewer)))


def _seconds(arm: Mapping[str, Any]) -> str:
    return duration(arm.get("seconds")) if arm.get("seconds") else "–"


def _usd(arm: Mapping[str, Any]) -> str:
    usd = arm.get("usd", _mapping(arm.get("teacher")).get("usd"))
    return f"${usd:.2f}" if is_number(usd) and usd else "–"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
