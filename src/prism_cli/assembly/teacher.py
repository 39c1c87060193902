"""The teacher a recipe names, at work: looked at, probed, served if it is ours, and its usage kept."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import get_console

from prism_cli import processes
from prism_cli.assembly.asking import Asking, asking
from prism_cli.assembly.desk import TeacherAnswers
from prism_cli.assembly.endpoint import LiveTeacher, at_batch_price, budget_of, client_of, model_of, store_path, url_of
from prism_cli.assembly.probe import probed, refuse_blind
from prism_cli.assembly.teacher_plan import Outlook
from prism_cli.endpoint.store import AnswerStore
from prism_cli.progress import say
from prism_cli.recipes.sections import Data
from prism_cli.recipes.teachers import DatasetTeacher, Teacher
from prism_cli.responses import Grammar
from prism_cli.runs.files import write_atomically
from prism_cli.runs.folder import Run
from prism_cli.teacher.teachers import ColumnTeacher, EndpointTeacher

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TeacherAnswers", "open_teacher"]

USAGE = "teacher.json"
# Seconds for calls under way when a stage ends.
DRAIN = 30.0


@contextmanager
def open_teacher(
    section: Teacher,
    grammar: Grammar,
    run: Run,
    *rows: "Dataset",
    instruction: str | None = None,
    data: Data | None = None,
    at_most: int | None = None,
    samples: int = 1,
    batch: bool = False,
) -> Iterator[TeacherAnswers]:
    """The teacher a section names, ready to be asked about rows; its endpoint, if ours, runs as long as the context.

    Before the first question it is told what asking will take, and the teacher is probed. What it was asked is counted
    by the store, call by call, so that a cap holds over restarts; the run's teacher.json has the sums. What is under
    way when the context ends, by an error too, is waited for and kept, as it is paid for; Ctrl-C waits for nothing.
    Where several processes train, all enter it, and the main one asks for all.

    Args:
        section: Which teacher.
        grammar: The policy's parts.
        run: Whose usage counts.
        rows: The data sets it will be asked about.
        instruction: The policy's instruction, as it stands in the rows.
        data: Where the rows are from; a picture world brings probes of its own.
        at_most: How many questions will be put, if fewer than there are rows.
        samples: Answers wanted a row.
        batch: They will be asked in batches; what that will cost is told so.

    Raises:
        TeacherError: it is blind, can't be reached, or failed on more rows than allowed.
        BudgetError: a cap was reached.
    """

    how = asking(section, grammar, instruction)
    if isinstance(section, DatasetTeacher):
        answers = {id: text for data in rows for id, text in zip(data["id"], data["teacher_response"], strict=True)}
        yield TeacherAnswers(ColumnTeacher(answers), how, *rows)
        return
    if not processes.is_main():
        processes.from_main(lambda: None)  # whether the main process can ask
        yield TeacherAnswers(ColumnTeacher({}), how, *rows)
        return
    with ExitStack() as stack:
        told = at_batch_price(section) if batch else section
        desks: list[TeacherAnswers] = []
        processes.from_main(
            lambda: desks.append(_live_desk(section, told, how, run, rows, data, samples, at_most, stack))
        )
        (desk,) = desks
        yield desk
        desk.refuse_failures()


def _live_desk(
    section: LiveTeacher,
    told: LiveTeacher,
    how: Asking,
    run: Run,
    rows: Sequence["Dataset"],
    data: Data | None,
    samples: int,
    at_most: int | None,
    stack: ExitStack,
) -> TeacherAnswers:
    from prism_cli.data.rows import has_pictures, raw_rows

    path = run.folder / USAGE
    store = AnswerStore(store_path(section, run.folder))
    stack.callback(store.close)
    # The folder alone would not tell a run from the one that --fresh deleted.
    name = f"{run.folder.resolve()} {run.manifest.get('created', '')}"
    budget = budget_of(section, spent_before(path, store.spent(name)), name)

    def keep_usage() -> None:
        write_atomically(path, json.dumps(budget.summary(), indent=2))

    stack.callback(keep_usage)
    model = model_of(section, store)
    outlook = stack.enter_context(Outlook(told, how, model, store))
    asked = (how.request(row, sample) for source in rows for row in raw_rows(source) for sample in range(samples))
    get_console().print(outlook.plan(asked, at_most).table())
    url = url_of(section, how.grammar, stack)
    if section.check and how.sees and any(map(has_pictures, rows)):
        refuse_blind(probed(section, how, url, model, store, budget, data), f"{model} at {url}")
    client = client_of(section, url, model, store, budget, attempts=section.attempts, check=how.problem)
    teacher = EndpointTeacher(client)
    desk = TeacherAnswers(
        teacher, how, *rows, max_failed=section.max_failed, outlook=outlook, budget=budget, keep_usage=keep_usage
    )
    stack.callback(lambda: _say(desk.account()))

    def close(kind: type[BaseException] | None, *_: object) -> None:
        client.close(DRAIN if kind is None or issubclass(kind, Exception) else 0)

    stack.push(close)
    return desk


def spent_before(path: Path, known: dict[str, int | float]) -> dict[str, int | float]:
    """What earlier starts spent: as the store knows; a run from before it knew runs stands in the summary only."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: max(told.get(name) or 0, known.get(name, 0)) for name in {*told, *known}}


def _say(line: str | None) -> None:
    if line is not None:
        say(line)
