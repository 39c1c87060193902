"""The teacher a recipe names, at work: looked at, probed, served if it is ours, and its usage kept."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich import get_console

from prism_cli.endpoint.store import AnswerStore
from prism_cli.recipes.sections import Data
from prism_cli.recipes.teachers import DatasetTeacher, Teacher
from prism_cli.responses import Grammar
from prism_cli.runs import Run, write_atomically
from prism_cli.stages.asking import Asking, asking
from prism_cli.stages.connections import LiveTeacher, budget_of, client_of, model_of, store_path, url_of
from prism_cli.stages.desk import TeacherDesk
from prism_cli.stages.outlook import Outlook, has_pictures, raw_rows
from prism_cli.stages.probe import probed, refuse_blind
from prism_cli.teacher.teachers import ColumnTeacher, EndpointTeacher

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TeacherDesk", "teaching"]

USAGE = "teacher.json"


@contextmanager
def teaching(
    section: Teacher,
    grammar: Grammar,
    run: Run,
    *rows: "Dataset",
    instruction: str | None = None,
    data: Data | None = None,
    at_most: int | None = None,
    samples: int = 1,
) -> Iterator[TeacherDesk]:
    """The teacher a section names, ready to be asked about rows; its endpoint, if ours, runs as long as the context.

    Before the first question it is told what asking will take, and the teacher is probed. What it was asked is counted
    in the run's teacher.json, after each batch, so that a cap holds over restarts.

    Args:
        section: Which teacher.
        grammar: The policy's parts.
        run: Whose usage counts.
        rows: The data sets it will be asked about.
        instruction: The policy's instruction, as it stands in the rows.
        data: Where the rows are from; a picture world brings probes of its own.
        at_most: How many questions will be put, if fewer than there are rows.
        samples: Answers wanted a row.

    Raises:
        TeacherError: it is blind, can't be reached, or failed on more rows than allowed.
        BudgetError: a cap was reached.
    """
    how = asking(section, grammar, instruction)
    if isinstance(section, DatasetTeacher):
        answers = {id: text for data in rows for id, text in zip(data["id"], data["teacher_response"], strict=True)}
        yield TeacherDesk(ColumnTeacher(answers), how, *rows)
        return
    with ExitStack() as stack:
        desk = _live_desk(section, how, run, rows, data, samples, at_most, stack)
        yield desk
        desk.refuse_failures()


def _live_desk(
    section: LiveTeacher,
    how: Asking,
    run: Run,
    rows: Sequence["Dataset"],
    data: Data | None,
    samples: int,
    at_most: int | None,
    stack: ExitStack,
) -> TeacherDesk:
    path = run.folder / USAGE
    budget = budget_of(section, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)

    def keep_usage() -> None:
        write_atomically(path, json.dumps(budget.summary(), indent=2))

    stack.callback(keep_usage)
    store = AnswerStore(store_path(section, run.folder))
    stack.callback(store.close)
    model = model_of(section, store)
    outlook = stack.enter_context(Outlook(section, how, model, store))
    asked = (how.request(row, sample) for source in rows for row in raw_rows(source) for sample in range(samples))
    get_console().print(outlook.plan(asked, at_most).table())
    url = url_of(section, how.grammar, stack)
    if section.check and how.sees and any(map(has_pictures, rows)):
        refuse_blind(probed(section, how, url, model, store, budget, data), f"{model} at {url}")
    client = client_of(section, url, model, store, budget, attempts=section.attempts, check=how.problem)
    teacher = EndpointTeacher(client)
    stack.callback(teacher.close)
    desk = TeacherDesk(
        teacher, how, *rows, max_failed=section.max_failed, outlook=outlook, budget=budget, keep_usage=keep_usage
    )
    stack.callback(lambda: _say(desk.account()))
    return desk


def _say(line: str | None) -> None:
    if line is not None:
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)
