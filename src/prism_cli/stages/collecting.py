"""Answers to every row as they come, asked one by one or in batches; the same to whoever collects them."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from PIL import Image

from prism_cli.endpoint.batch import BatchAsker
from prism_cli.endpoint.batch_terms import PRICE_SHARE, Terms
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import BudgetError
from prism_cli.recipes.stages import CollectRecipe
from prism_cli.recipes.teachers import OpenAITeacher, PriceSection
from prism_cli.stages.build import progress_callback
from prism_cli.stages.connections import price_of
from prism_cli.stages.costs import PIXELS_A_TOKEN
from prism_cli.stages.teaching import TeacherDesk
from prism_cli.teacher.batch_teacher import BatchTeacher
from prism_cli.teacher.teachers import EndpointTeacher

if TYPE_CHECKING:
    from datasets import Dataset

# Answers are taken in small lots, so that the bar moves, while so many questions are put ahead.
LOT, AHEAD = 16, 256


class Answer(NamedTuple):
    """What a row got.

    Attributes:
        row: The row's id.
        sample: Which of several answers.
        text: The answer, or "" where there is none.
        problem: Why there is none, as `kind: details`, or None.
    """

    row: str
    sample: int
    text: str
    problem: str | None


class Answers(Protocol):
    """Answers by row.

    Attributes:
        stopped: The cap that ended it before all rows were asked about, or None.
    """

    stopped: BudgetError | None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """Each row with its answers, in order; ends early at a cap."""
        ...


class DirectAnswers:
    """Answers asked one by one.

    Args:
        desk: The teacher's.
        samples: Answers a row.
    """

    def __init__(self, desk: TeacherDesk, samples: int):
        self._desk, self._samples = desk, samples
        self.stopped: BudgetError | None = None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """See `Answers`."""
        ids = [{"id": id} for id in rows["id"]]
        ahead = max(LOT, AHEAD // self._samples)
        bar, moved = progress_callback("collecting", len(ids) * self._samples)
        with bar:
            self._prefetch(ids[:ahead])
            for start in range(0, len(ids), LOT):
                if self.stopped is None:
                    self._prefetch(ids[start + ahead : start + ahead + LOT])
                answered = self._lot(ids[start : start + LOT])
                moved(min(start + LOT, len(ids)) * self._samples)
                for index, given in enumerate(answered):
                    if given:
                        yield rows[start + index], given

    def _lot(self, lot: Sequence[dict[str, str]]) -> list[list[Answer]]:
        """The answers of some rows; once a cap is reached, those that came all the same."""
        texts = []
        for sample in range(self._samples):
            try:
                texts.append(self._desk.answers(lot, sample))
            except BudgetError as error:
                self.stopped = self.stopped or error
        if self.stopped is not None:
            return [self._kept(row["id"]) for row in lot]
        return [
            [self._answer(row["id"], *one) for one in enumerate(given)]
            for row, given in zip(lot, zip(*texts, strict=True), strict=True)
        ]

    def _kept(self, id: str) -> list[Answer]:
        assert isinstance(self._desk.teacher, EndpointTeacher), "only an endpoint's answers are capped one by one"
        client = self._desk.teacher.client
        kept = [client.kept(self._desk.request(id, sample)) for sample in range(self._samples)]
        return [Answer(id, sample, answer.text, None) for sample, answer in enumerate(kept) if answer is not None]

    def _prefetch(self, rows: Sequence[dict[str, str]]) -> None:
        for sample in range(self._samples):
            self._desk.prefetch(rows, sample)

    def _answer(self, id: str, sample: int, text: str | None) -> Answer:
        return Answer(id, sample, text or "", self._desk.reason(id, sample) if text is None else None)


class BatchAnswers:
    """Answers asked in batches, then read.

    Args:
        desk: The teacher's; it reads what the batches brought, and asks nobody from then on.
        recipe: The stage's, its teacher an endpoint.
        folder: Where batches are written down.
    """

    def __init__(self, desk: TeacherDesk, recipe: CollectRecipe, folder: Path):
        assert isinstance(recipe.teacher, OpenAITeacher), "check refuses batches of another teacher"
        assert isinstance(desk.teacher, EndpointTeacher), "an endpoint's desk has an endpoint's teacher"
        section, client = recipe.teacher, desk.teacher.client
        self._desk, self._samples = desk, recipe.samples
        price = price_of(at_batch_price(section))
        self._asker = BatchAsker(
            client,
            folder,
            base_url=section.endpoint or "",
            api_key_env=section.api_key_env,
            terms=Terms(price, section.max_calls, section.max_usd, most_prompt_tokens),
        )
        desk.teacher = BatchTeacher(client, self._asker)
        self.stopped: BudgetError | None = None

    def of(self, rows: "Dataset") -> Iterator[tuple[dict[str, Any], list[Answer]]]:
        """See `Answers`."""
        ids = rows["id"]
        self._ask(ids)
        if self.stopped is not None:
            rows = rows.select([index for index, id in enumerate(ids) if all(map(self._asker.was_asked, self._of(id)))])
        yield from DirectAnswers(self._desk, self._samples).of(rows)

    def _ask(self, ids: Sequence[str]) -> None:
        bar, _ = progress_callback("waiting for batches", 0)
        with bar:
            try:
                self._asker.run(
                    lambda: (request for id in ids for request in self._of(id)),
                    lambda done, submitted: bar.update(bar.task_ids[0], completed=done, total=submitted),
                )
            except BudgetError as error:
                self.stopped = error
            except KeyboardInterrupt:
                if waiting := ", ".join(self._asker.waiting):
                    bar.console.print(f"{waiting}: under way at the endpoint, and collected by the next start")
                raise

    def _of(self, id: str) -> Iterator[EndpointRequest]:
        return (self._desk.request(id, sample) for sample in range(self._samples))


def at_batch_price(section: OpenAITeacher) -> OpenAITeacher:
    """The section with what a batch costs, and without caps: batches are capped before they are submitted."""
    price = section.price and PriceSection(
        prompt=section.price.prompt * PRICE_SHARE, completion=section.price.completion * PRICE_SHARE
    )
    return section.model_copy(update={"price": price, "max_calls": None, "max_usd": None})


def most_prompt_tokens(request: EndpointRequest) -> int:
    """More prompt tokens than a request can have: a token a byte of text, and twice the usual number of a picture's."""
    text = sum(len(message["content"].encode()) for message in request.messages)
    pixels = sum(math.prod(Image.open(io.BytesIO(image)).size) for image in request.images)
    return text + math.ceil(2 * pixels / PIXELS_A_TOKEN)
