"""From a recipe's teacher, or judge of answers, to the store of its answers and a client that asks it."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette

from prism_cli.assembly.asking import split_caption
from prism_cli.endpoint.batch_terms import PRICE_SHARE
from prism_cli.endpoint.budget import Budget, Price
from prism_cli.endpoint.client import EndpointClient, served_model
from prism_cli.endpoint.failures import shown_url
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import DataError, RecipeError
from prism_cli.recipes.teachers import EmbeddedTeacher, EndpointSection, LLMJudge, OpenAITeacher, PriceSection
from prism_cli.responses import Grammar
from prism_cli.teacher.server import ChatRequest, ServedEndpoint, create_app
from prism_cli.worlds import WORLD_BLOCKS, world
from prism_cli.worlds.shapes import Variant

LiveTeacher = OpenAITeacher | EmbeddedTeacher
# Any model that a recipe has questions put to.
Asked = EndpointSection | EmbeddedTeacher

TEACHER_STORE = "teacher_answers.sqlite"
EMBEDDED_MAX_TOKENS = 256
UNNAMED = "the model it serves"
# A client that only looks at what is kept: never called, and so without a key.
NOWHERE = "http://127.0.0.1:9/v1"


def store_path(section: Asked, folder: Path) -> Path:
    """Where answers are kept: a file of the recipe, or one beside the run folder."""
    return Path(section.store) if isinstance(section, EndpointSection) else folder.parent / TEACHER_STORE


def budget_of(section: Asked, spent: dict[str, Any] | None = None, run: str = "") -> Budget:
    """The caps of a section, on top of what a run spent before; the embedded teacher has none."""
    if isinstance(section, EmbeddedTeacher):
        return Budget(spent=spent, run=run)
    return Budget(section.max_calls, section.max_usd, price_of(section), spent, run)


def at_batch_price(section: LiveTeacher) -> LiveTeacher:
    """The section with what its batches cost."""
    if isinstance(section, EmbeddedTeacher) or section.price is None:
        return section
    price = PriceSection(prompt=section.price.prompt * PRICE_SHARE, completion=section.price.completion * PRICE_SHARE)
    return section.model_copy(update={"price": price})


def price_of(section: Asked) -> Price | None:
    """What it charges, or None."""
    known = section.price if isinstance(section, EndpointSection) else None
    return None if known is None else Price(known.prompt, known.completion)


def model_of(section: Asked, store: AnswerStore) -> str:
    """The model to ask. Where it is named and answers are kept, the endpoint may be down until a new question.

    Raises:
        TeacherError: the endpoint can't be reached, or serves none or several and none is named.
    """
    named = named_model(section)
    if isinstance(section, EmbeddedTeacher) or (named is not None and store.count()):
        return named or ""
    return served_model(_endpoint(section), section.api_key_env, named)


def named_model(section: Asked) -> str | None:
    """The model a section names; None leaves it to the endpoint."""
    return f"{section.world}-{section.variant}" if isinstance(section, EmbeddedTeacher) else section.model


def shown_endpoint(section: Asked) -> str:
    """The base URL, as it may be printed."""
    return "http://127.0.0.1:PORT/v1" if isinstance(section, EmbeddedTeacher) else shown_url(_endpoint(section))


def url_of(section: Asked, grammar: Grammar, stack: ExitStack) -> str:
    """The base URL to ask; an embedded teacher is served as long as the stack is open."""
    if isinstance(section, EmbeddedTeacher):
        return stack.enter_context(ServedEndpoint(world_app(section.world, section.variant, grammar))).url
    return _endpoint(section)


def client_of(
    section: Asked,
    url: str,
    model: str,
    store: AnswerStore,
    budget: Budget,
    *,
    attempts: int,
    check: Callable[[str], str | None],
) -> EndpointClient:
    """A client with the section's settings.

    Args:
        section: Who is asked.
        url: Its base URL.
        model: Whom to ask there.
        store: Where answers are kept.
        budget: What may be spent.
        attempts: How often a question is put before it counts as failed.
        check: Says what is wrong with an answer's form, or None.
    """
    kept = {"store": store, "budget": budget, "attempts": attempts, "check": check}
    if isinstance(section, EmbeddedTeacher):
        return EndpointClient(url, model, temperature=0.0, max_tokens=EMBEDDED_MAX_TOKENS, **kept)
    return EndpointClient(
        url,
        model,
        name=section.name,
        api_key_env=section.api_key_env,
        temperature=section.temperature,
        max_tokens=section.max_tokens,
        max_image_pixels=section.max_image_pixels if isinstance(section, OpenAITeacher) else None,
        concurrency=section.concurrency,
        timeout=section.timeout,
        **kept,
    )


def onlooker(
    section: LiveTeacher, model: str, store: AnswerStore, check: Callable[[str], str | None]
) -> EndpointClient:
    """A client that tells what would be asked and what is kept; it reaches nobody, so it needs neither key nor net."""
    return client_of(section, NOWHERE, model, store, Budget(), attempts=1, check=check)


@contextmanager
def store_to_read(section: LiveTeacher, folder: Path) -> Iterator[AnswerStore]:
    """The teacher's store if there is one, else an empty one that is gone afterwards: looking writes nothing."""
    path = store_path(section, folder)
    with TemporaryDirectory() as nothing:
        store = AnswerStore(path if path.exists() else Path(nothing) / TEACHER_STORE)
        try:
            yield store
        finally:
            store.close()


def _endpoint(section: EndpointSection) -> str:
    if section.endpoint is None and isinstance(section, LLMJudge):
        raise RecipeError("rewards.llm_judge has no endpoint", "give rewards.llm_judge.endpoint=URL")
    if section.endpoint is None:
        raise RecipeError("the teacher has no endpoint", "give --teacher-endpoint URL")
    return section.endpoint


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
        told, question = split_caption(request.question)
        seeds = range(request.seed or 0, (request.seed or 0) + request.n)
        return [grammar.render(place.oracle(question, image, variant, seed, told)) for seed in seeds]

    return create_app(answer, model=f"{name}-{variant}", api_key=api_key, delay=delay)


def _picture(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"the image can't be decoded: {error}", "send a PNG or JPEG picture") from None
