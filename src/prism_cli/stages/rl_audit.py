"""`prism rl --audit`: what the rewards make of texts whose worth is known, before a run may train on them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import get_console
from rich.table import Table
from rich.text import Text

from prism_cli.assembly import checks
from prism_cli.assembly.data import first_rows
from prism_cli.assembly.endpoint import store_to_read
from prism_cli.assembly.response import response_settings
from prism_cli.assembly.rewards import reward_rules
from prism_cli.assembly.teacher import prompting_of, resolve_teacher
from prism_cli.errors import DataError, PrismError
from prism_cli.progress import say
from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.stages import RLRecipe
from prism_cli.responses import Response, ResponseSettings
from prism_cli.rewards.audit import REFERENCE, TEACHER, Audit, audit
from prism_cli.runs.references import read_manifest, resolve_model
from prism_cli.teacher.teacher import LiveTeacher

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 64
KNOWN_RIGHT = (REFERENCE, TEACHER)


def run(recipe: RLRecipe) -> Audit:
    """Audits the recipe's rewards on its first rows, without a model; asks nobody and writes nothing.

    Raises:
        PrismError: the recipe's data or rewards can't be used.
    """
    checks.check_data(recipe.data, "rl")
    settings = response_settings(recipe)
    rows = first_rows(recipe.data, settings, ROWS)
    if not any(row["answers"] for row in rows):
        raise DataError(f"none of the first {len(rows)} rows has an answer to verify", "give `answer` in each row")
    return _audit(recipe, rows, settings)


def audit_before_training(recipe: RLRecipe, rows: "Dataset", settings: ResponseSettings) -> None:
    """Audits the rewards on the first rows of a run's data, and says in a line what came of it.

    Raises:
        PrismError: training on them would be in vain; the table is printed.
    """
    from prism_cli.data.rows import raw_rows  # here: datasets costs a second to import

    outcome = _audit(recipe, list(islice(raw_rows(rows), ROWS)), settings)
    problems = outcome.problems(recipe.rewards.max_wrong)
    if problems:
        get_console().print(table(outcome))
        raise PrismError("; ".join(problems), f"{cure(outcome)}; see all of it: prism rl … --audit")
    right = [
        f"{_number(case.means['accuracy'])} on {case.name}" for case in map(outcome.case, KNOWN_RIGHT) if case.rows
    ]
    line = f"rewards audited on {outcome.rows} rows: accuracy {', '.join(right)}"
    say(line)


def values(outcome: Audit, recipe: RLRecipe) -> dict[str, Any]:
    """The audit as plain values."""
    return {
        "rows": outcome.rows,
        "llm_judge": None if recipe.rewards.llm_judge is None else "not asked",
        "cases": [{**case._asdict(), "surprises": [one._asdict() for one in case.surprises]} for case in outcome.cases],
        "problems": outcome.problems(recipe.rewards.max_wrong),
    }


def table(outcome: Audit) -> Table:
    """The audit for a terminal."""
    shown = Table(title=f"rewards of texts whose worth is known, on {outcome.rows} rows", title_justify="left")
    names = list(dict.fromkeys(name for case in outcome.cases for name in case.means))
    for head in ("text", "rows", *names, "accuracy should be"):
        shown.add_column(head, justify="left" if head == "text" else "right", no_wrap=head == "text")
    for case in outcome.cases:
        style = "red" if case.surprises else ""
        rows = str(case.rows or ("none known" if case.name == TEACHER else "none"))
        cells = [case.name, rows, *(_number(case.means.get(name)) for name in names)]
        wanted = "" if case.expected is None else f"{case.expected:g}"
        open_ = f" ({case.unscored} open)" if case.unscored else ""
        shown.add_row(*(Text(cell) for cell in cells), Text(wanted + open_), style=style)
    if any(case.unscored for case in outcome.cases):
        shown.caption = "LLM judge not asked: free text that the rules find wrong is left open"
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def cure(outcome: Audit) -> str:
    """Cure for the audit's problems."""
    wrong = outcome.case(TEACHER).surprises
    malformed = sum(one.problem is not None for one in wrong)
    advice = {
        "name the tags the teacher writes in response.parts, or leave teacher_response out of the rows": malformed > 0,
        "mend the answers of the data, or give rewards.llm_judge for free text": malformed < len(wrong),
        "raise rewards.max_wrong if the teacher is that often wrong": bool(wrong),
        "leave out the rows that are named": not wrong,
    }
    return "; or ".join(text for text, fits in advice.items() if fits)


def _audit(recipe: RLRecipe, rows: Sequence[dict[str, Any]], settings: ResponseSettings) -> Audit:
    ask = None if recipe.rewards.llm_judge is None else lambda answers: [None] * len(answers)
    rewards = reward_rules(recipe, ask)

    def score(
        responses: Sequence[Response], rows: Sequence[dict[str, Any]], lengths: Sequence[int]
    ) -> Mapping[str, Sequence[float | None]]:
        rewards.score(responses, rows, lengths)
        return rewards.values

    return audit(rows, settings.grammar, score, recipe.max_response_tokens, _teachers(recipe, rows, settings))


# What a teacher wrote -------------------------------------------------------------------------------------------------


def _teachers(recipe: RLRecipe, rows: Sequence[dict[str, Any]], settings: ResponseSettings) -> list[Response | None]:
    """The rows' own teacher responses; where there is none, what the run it starts from has kept of its teacher."""
    own = [settings.grammar.parse(text) if (text := row.get("teacher_response")) else None for row in rows]
    if any(own) or recipe.from_ is None:
        return own
    try:
        return list(_kept(recipe.from_, rows, settings))
    except PrismError:
        return own  # that run's recipe or store can't be read: then nothing is known


def _kept(start: str, rows: Sequence[dict[str, Any]], settings: ResponseSettings) -> Iterator[Response | None]:
    folder = Path(resolve_model(start)[1]["run"])
    stage = read_manifest(folder)["stage"]
    earlier = load_recipe(stage, folder / "recipe.yaml")
    section = earlier.teacher if stage in ("sft", "align") else None  # of those a run starts from, they ask one
    teacher = None if section is None else resolve_teacher(section)
    if not isinstance(teacher, LiveTeacher) or teacher.endpoint.model is None:
        yield from [None] * len(rows)
        return
    prompting = prompting_of(teacher, settings)
    with store_to_read(teacher.endpoint, folder, prompting.problem) as answers:
        for row in rows:
            kept = answers.kept(prompting.request(row))
            yield None if kept is None else prompting.grammar.parse(kept.text)
