"""Endpoints of a recipe: the section as a value, and an endpoint at work with its store, budget and clients."""

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette

from prism_cli.endpoint.budget import Budget, Caps, Price
from prism_cli.endpoint.client import EndpointClient, served_model
from prism_cli.endpoint.endpoint import Endpoint, Limits, Sampling
from prism_cli.endpoint.kept import Check, KeptAnswers
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import BudgetError, DataError, PrismError, RecipeError, TeacherError
from prism_cli.recipes.teachers import EndpointSection
from prism_cli.responses import Grammar
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import read_manifest
from prism_cli.teacher.prompting import split_caption
from prism_cli.teacher.server import ChatRequest, create_app
from prism_cli.worlds import WORLD_BLOCKS, world
from prism_cli.worlds.shapes import Variant

# The store of an endpoint that names none, beside the run's folder.
STORE = "teacher_answers.sqlite"
# How long calls under way are waited for when a stage ends: they are paid for.
DRAIN_SECONDS = 30.0


def resolve_endpoint(section: EndpointSection, max_image_pixels: int | None = None) -> Endpoint:
    """The endpoint of a section.

    Args:
        section: A model that a recipe asks.
        max_image_pixels: Larger pictures are scaled down to this before they are sent; None sends them as read.
    """
    limits = Limits(section.concurrency, section.timeout, section.attempts, max_image_pixels)
    return Endpoint(
        url=section.endpoint,
        model=section.model,
        name=section.name,
        key_env=section.api_key_env,
        sampling=Sampling(section.temperature, section.max_tokens),
        limits=limits,
        caps=Caps(section.max_calls, section.max_usd),
        price=section.price and Price(section.price.prompt, section.price.completion),
        store=Path(section.store),
    )


class OpenEndpoint:
    """An endpoint at work for a run.

    Args:
        endpoint: Its model known.
        store: Where its answers are kept.
        budget: What may be spent.
        usage: The file of the sums, or None.

    Attributes:
        endpoint: As given.
        store: As given.
        budget: As given.
    """

    def __init__(self, endpoint: Endpoint, store: AnswerStore, budget: Budget, usage: Path | None):
        self.endpoint, self.store, self.budget, self._usage = endpoint, store, budget, usage
        self._clients: list[EndpointClient] = []

    def client(self, check: Check = lambda text: None, attempts: int | None = None) -> EndpointClient:
        """A client that asks it, open as long as the endpoint.

        Args:
            check: Says what is wrong with an answer's form, or None.
            attempts: Most answers to one question; None for what the endpoint says.
        """
        endpoint = self.endpoint if attempts is None else self.endpoint.with_attempts(attempts)
        self._clients.append(EndpointClient(endpoint, self.store, self.budget, check))
        return self._clients[-1]

    def kept(self, check: Check) -> KeptAnswers:
        """Its answers in the store."""
        return KeptAnswers(self.endpoint, self.store, check)

    def keep_usage(self) -> None:
        """Writes the sums of calls, tokens and dollars."""
        if self._usage is not None:
            write_atomically(self._usage, json.dumps(self.budget.summary(), indent=2))

    def close(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """Ends its clients: what is under way is waited for and kept, but after Ctrl-C."""
        for client in self._clients:
            client.close(DRAIN_SECONDS if kind is None or issubclass(kind, Exception) else 0)


@contextmanager
def open_endpoint(
    endpoint: Endpoint, section: str, folder: Path, usage: str | None, role: str | None = None
) -> Iterator[OpenEndpoint]:
    """An endpoint at work, for a run.

    The store counts calls as they are made, so that a cap holds over restarts. What is under way when the context ends,
    by an error too, is waited for and kept; Ctrl-C waits for nothing.

    Args:
        endpoint: Which. Where it names a model and has kept answers, it may be down until a new question; where its URL
            is None it is never asked.
        section: Its place in the recipe, for messages.
        folder: The run's; its spending counts.
        usage: The file in it that has the sums; None for a look that is no run's.
        role: Keeps the answers of an endpoint without a name apart from those of the same model in another use.

    Raises:
        TeacherError: it can't be reached, or serves none or several models with none named; later, it failed for good.
        BudgetError: later, a cap was reached.
    """
    with in_section(section, BudgetError, TeacherError), ExitStack() as stack:
        store = AnswerStore(_store_path(endpoint, folder))
        stack.callback(store.close)
        if endpoint.url is not None and (endpoint.model is None or not store.count()):
            endpoint = endpoint._replace(model=served_model(endpoint))
        if role is not None:
            endpoint = endpoint._replace(name=endpoint.name or f"{endpoint.served_name}, {role}")
        if usage is None:
            opened = OpenEndpoint(endpoint, store, Budget(endpoint.caps, endpoint.price), None)
        else:
            # The folder alone would not tell a run from the one that --fresh deleted.
            run = f"{folder.resolve()} {read_manifest(folder).get('created', '')}"
            spent = _spent_before(folder / usage, store.spent(run))
            budget = Budget(endpoint.caps, endpoint.price, spent, run)
            opened = OpenEndpoint(endpoint, store, budget, folder / usage)
        stack.callback(opened.keep_usage)
        stack.push(opened.close)
        yield opened


@contextmanager
def store_to_read(endpoint: Endpoint, folder: Path, check: Check) -> Iterator[KeptAnswers]:
    """An endpoint's kept answers; where it has no store yet, none: looking writes nothing.

    Args:
        endpoint: Whose.
        folder: Of the run.
        check: Says what is wrong with an answer's form, or None.
    """
    path = _store_path(endpoint, folder)
    with TemporaryDirectory() as nothing:
        store = AnswerStore(path if path.exists() else Path(nothing) / STORE)
        try:
            yield KeptAnswers(endpoint, store, check)
        finally:
            store.close()


@contextmanager
def in_section(section: str, *kinds: type[PrismError]) -> Iterator[None]:
    """Errors of these kinds say which section of the recipe they are about."""
    try:
        yield
    except kinds as error:
        error.in_section(section)
        raise


def world_app(
    name: str, variant: Variant, grammar: Grammar, api_key: str | None = None, delay: float = 0.0
) -> Starlette:
    """An app that answers about pictures of a world, in a grammar of its blocks (caption, think, answer).

    Raises:
        RecipeError: the grammar has a block the world doesn't write.
    """
    place = world(name)
    if unknown := set(grammar.tags) - WORLD_BLOCKS:
        raise RecipeError(
            f"the embedded teacher writes {', '.join(sorted(WORLD_BLOCKS))}, not {', '.join(sorted(unknown))}",
            "declare response.parts with these tags, or take another teacher",
        )

    def answer(request: ChatRequest) -> list[str]:
        image = _picture(request.images[0]) if request.images else None
        caption, question = split_caption(request.question)
        seeds = range(request.seed or 0, (request.seed or 0) + request.n)
        return [grammar.render(place.oracle(question, image, variant, seed, caption)) for seed in seeds]

    return create_app(answer, model=f"{name}-{variant}", api_key=api_key, delay=delay)


def _picture(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"the image can't be decoded: {error}", "send a PNG or JPEG picture") from None


def _store_path(endpoint: Endpoint, folder: Path) -> Path:
    """The file of an endpoint's answers, for a run in a folder."""
    return endpoint.store or folder.parent / STORE


def _spent_before(usage: Path, stored: dict[str, int | float]) -> dict[str, int | float]:
    """Spending of earlier starts, by the run's summary and by the store: after a kill the store has more, and where the
    run goes on with another store, the summary has."""
    summary = json.loads(usage.read_text(encoding="utf-8")) if usage.exists() else {}
    return {name: max(summary.get(name) or 0, stored.get(name, 0)) for name in {*summary, *stored}}
