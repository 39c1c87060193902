"""What a teacher would be asked and what that would take, without asking it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from prism_cli.assembly.asking import Asking, asking
from prism_cli.assembly.data import rows_ahead
from prism_cli.assembly.discriminator import samples_pairs
from prism_cli.assembly.endpoint import (
    EMBEDDED_MAX_TOKENS,
    UNNAMED,
    LiveTeacher,
    at_batch_price,
    named_model,
    onlooker,
    price_of,
    shown_endpoint,
    store_to_read,
)
from prism_cli.assembly.response import response_settings
from prism_cli.endpoint.budget import Price
from prism_cli.endpoint.estimate import Average, Rates, TeacherPlan, teacher_plan
from prism_cli.endpoint.preview import preview
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import PrismError, RecipeError
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.stages import AlignRecipe, CollectRecipe, WarmupRecipe
from prism_cli.recipes.teachers import EmbeddedTeacher, OpenAITeacher

# Fewer kept calls than this say little about the next ones.
ENOUGH_TO_AVERAGE = 20


class Outlook:
    """Looks at what is kept and at what would be sent; a context that reaches nobody.

    Args:
        section: The teacher.
        how: How it is asked.
        model: Whom to ask there.
        store: Where answers are kept.
    """

    def __init__(self, section: LiveTeacher, how: Asking, model: str, store: AnswerStore):
        self._client = onlooker(section, model, store, how.problem)
        name = section.name if isinstance(section, OpenAITeacher) else None
        self._url = shown_endpoint(section)
        self._rates = Rates(
            section.max_tokens if isinstance(section, OpenAITeacher) else EMBEDDED_MAX_TOKENS,
            section.max_image_pixels if isinstance(section, OpenAITeacher) else None,
            price_of(section) if isinstance(section, OpenAITeacher) else Price(0.0, 0.0),
            _average(store, name or model, model),
        )

    def __enter__(self) -> "Outlook":
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def plan(self, requests: Iterable[EndpointRequest], at_most: int | None = None) -> TeacherPlan:
        """What asking would take, by what is kept.

        Args:
            requests: All that may be asked.
            at_most: How many of them will be, if fewer.
        """
        return teacher_plan(
            requests, self._client.key, lambda one: self._client.kept(one) is not None, self._rates, at_most
        )

    def preview(self, requests: Iterable[EndpointRequest]) -> str:
        """The requests as they would be sent."""
        return preview(self._url, [self._client.body(request) for request in requests])


def _average(store: AnswerStore, teacher: str, model: str) -> Average | None:
    for totals in store.summary():
        prompt, completion = totals.mean_prompt_tokens, totals.mean_completion_tokens
        if (totals.teacher, totals.model) != (teacher, model) or totals.calls < ENOUGH_TO_AVERAGE:
            continue
        if prompt is not None and completion is not None:
            return Average(prompt, completion)
    return None


def questions_at_most(recipe: Any) -> int | None:
    """How many questions a stage puts at most; None where it asks about every row."""
    if not isinstance(recipe, AlignRecipe | WarmupRecipe):
        return None
    warmup = recipe.discriminator.warmup
    pairs = warmup.pairs + warmup.held_out
    if isinstance(recipe, WarmupRecipe):
        return pairs
    if recipe.max_steps is None:
        return None
    warm = pairs if samples_pairs(recipe) else 0
    return recipe.max_steps * recipe.prompts_per_step + warm


# Before a run --------------------------------------------------------------------------------------------------------


def teacher_lines(stage: str, recipe: Any) -> list[tuple[str, str]]:
    """The plan's lines about asking; where rows or grammar can't be read yet, a line that says why."""
    if not _asks(recipe):
        return []
    samples = recipe.samples if isinstance(recipe, CollectRecipe) else 1
    try:
        with _looking(stage, recipe) as (outlook, requests):
            asked = requests(None, samples)
            return outlook.plan(asked, questions_at_most(recipe)).lines()
    except PrismError as error:
        return [("teacher calls", f"can't be told yet: {error}")]


def teacher_preview(stage: str, recipe: Any, count: int) -> str:
    """The first requests a stage would send; sends none and loads no weights.

    Raises:
        RecipeError: the recipe has no teacher to ask.
        PrismError: rows or grammar can't be read.
    """
    if not _asks(recipe):
        raise RecipeError(f"`prism {stage}` asks no teacher here", "give --teacher-endpoint URL")
    with _looking(stage, recipe) as (outlook, requests):
        return outlook.preview(islice(requests(count, 1), count))


def _asks(recipe: Any) -> bool:
    """Whether the stage asks an endpoint at all."""
    reads_pairs = isinstance(recipe, WarmupRecipe) and recipe.discriminator.warmup.data is not None
    return isinstance(getattr(recipe, "teacher", None), OpenAITeacher | EmbeddedTeacher) and not reads_pairs


@contextmanager
def _looking(stage: str, recipe: Any) -> Iterator[tuple[Outlook, Any]]:
    import datasets

    datasets.disable_progress_bars()
    section: LiveTeacher = recipe.teacher
    if isinstance(recipe, CollectRecipe) and recipe.batch:
        section = at_batch_price(section)
    settings = response_settings(recipe)
    how = asking(section, *settings)
    sources = [one for one in (recipe.data, getattr(recipe, "eval_data", None)) if one is not None]

    def requests(count: int | None, samples: int) -> Iterator[EndpointRequest]:
        for source in sources:
            for row in rows_ahead(source, settings, count):
                yield from (how.request(row, sample) for sample in range(samples))

    model = named_model(section) or UNNAMED
    with store_to_read(section, run_folder(stage, recipe)) as store, Outlook(section, how, model, store) as outlook:
        yield outlook, requests
