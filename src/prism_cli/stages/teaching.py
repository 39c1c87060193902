"""The teacher a recipe names, at work: asked about rows by id, its endpoint started and stopped, its usage kept."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.client import EndpointClient, served_model
from prism_cli.endpoint.requests import data_url
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import DataError
from prism_cli.recipes.teachers import DatasetTeacher, EmbeddedTeacher, OpenAITeacher, Teacher
from prism_cli.responses import Grammar
from prism_cli.runs import Run, write_atomically
from prism_cli.stages.serve import world_app
from prism_cli.teacher.server import ServedEndpoint
from prism_cli.teacher.teachers import ColumnTeacher, EndpointTeacher, TeacherRequest
from prism_cli.teacher.teachers import Teacher as TeacherProtocol

if TYPE_CHECKING:
    from datasets import Dataset

TEACHER_STORE = "teacher_answers.sqlite"
USAGE = "teacher.json"


class TeacherDesk:
    """Asks a teacher about rows of one data set, with the images' bytes as they were read.

    Args:
        teacher: Whom to ask.
        rows: The data sets the rows are from, by id.
        keep_usage: Called after each batch of answers.

    Raises:
        DataError: two different rows have one id, so one would get the other's answer.
    """

    def __init__(self, teacher: TeacherProtocol, *rows: "Dataset", keep_usage: Callable[[], None] = lambda: None):
        from datasets import Image, List

        self.teacher = teacher
        self._keep_usage = keep_usage
        self._sources: dict[str, tuple[Any, int]] = {}
        for data in rows:
            raw = data.cast_column("images", List(Image(decode=False)))
            for index, id in enumerate(data["id"]):
                if id in self._sources and self._row(id) != raw[index]:
                    raise DataError(
                        f"two rows have the id {id}, one in each data set", "give each row an `id` of its own"
                    )
                self._sources[id] = (raw, index)

    def prefetch(self, rows: Sequence[dict]) -> None:
        """Starts asking about rows, and returns at once."""
        self.teacher.prefetch([self._request(row["id"]) for row in rows])

    def answers(self, rows: Sequence[dict]) -> list[str]:
        """The teacher's texts, in order."""
        answers = self.teacher.answers([self._request(row["id"]) for row in rows])
        self._keep_usage()
        return [answer.text for answer in answers]

    def image_url(self, id: str) -> str | None:
        """A row's first picture as a data URL, or None."""
        images = self._request(id).images
        return data_url(images[0]) if images else None

    def _request(self, id: str) -> TeacherRequest:
        row = self._row(id)
        return TeacherRequest(row["prompt"], tuple(image["bytes"] for image in row["images"]), row=id)

    def _row(self, id: str) -> dict[str, Any]:
        data, index = self._sources[id]
        return data[index]


@contextmanager
def teaching(section: Teacher, grammar: Grammar, run: Run, *rows: "Dataset") -> Iterator[TeacherDesk]:
    """The teacher a section names, ready to be asked about rows; its endpoint, if ours, runs as long as the context.

    What it was asked is counted in the run's teacher.json, after each batch, so that a cap holds over restarts.

    Args:
        section: Which teacher.
        grammar: What an embedded teacher writes.
        run: Whose usage counts.
        rows: The data sets it will be asked about.
    """
    if isinstance(section, DatasetTeacher):
        answers = {id: text for data in rows for id, text in zip(data["id"], data["teacher_response"], strict=True)}
        yield TeacherDesk(ColumnTeacher(answers), *rows)
        return
    path = run.folder / USAGE
    cap = section.max_calls if isinstance(section, OpenAITeacher) else None
    budget = Budget(cap, spent=json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)

    def keep_usage() -> None:
        write_atomically(path, json.dumps(budget.summary(), indent=2))

    with ExitStack() as stack:
        stack.callback(keep_usage)
        store = AnswerStore(_store_path(section, run.folder.parent))
        stack.callback(store.close)
        teacher = EndpointTeacher(_client(section, grammar, store, budget, stack))
        stack.callback(teacher.close)
        yield TeacherDesk(teacher, *rows, keep_usage=keep_usage)


def _store_path(section: OpenAITeacher | EmbeddedTeacher, folder: Path) -> Path:
    path = Path(section.store) if isinstance(section, OpenAITeacher) else folder / TEACHER_STORE
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _client(
    section: OpenAITeacher | EmbeddedTeacher, grammar: Grammar, store: AnswerStore, budget: Budget, stack: ExitStack
) -> EndpointClient:
    if isinstance(section, EmbeddedTeacher):
        model = f"{section.world}-{section.variant}"
        server = stack.enter_context(ServedEndpoint(world_app(section.world, section.variant, grammar)))
        return EndpointClient(server.url, model, store=store, temperature=0.0, max_tokens=256, budget=budget)
    assert section.endpoint is not None, "check_teacher refuses a teacher without an endpoint"
    return EndpointClient(
        section.endpoint,
        _model(section, store),
        store=store,
        api_key_env=section.api_key_env,
        temperature=section.temperature,
        max_tokens=section.max_tokens,
        concurrency=section.concurrency,
        budget=budget,
    )


def _model(section: OpenAITeacher, store: AnswerStore) -> str:
    """The model to ask; where it is named and answers are kept, the endpoint may be down until a new question."""
    assert section.endpoint is not None, "check_teacher refuses a teacher without an endpoint"
    if section.model is not None and store.count():
        return section.model
    return served_model(section.endpoint, section.api_key_env, section.model)
