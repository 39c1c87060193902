"""The teacher in a plan: what a stage would ask it and what that takes, and the first requests; asks nobody."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from prism_cli.assembly.data import rows_ahead
from prism_cli.assembly.discriminator import questions_of_align, questions_of_warmup
from prism_cli.assembly.endpoint import store_to_read
from prism_cli.assembly.response import response_settings
from prism_cli.assembly.teacher import prompting_of, resolve_teacher
from prism_cli.endpoint.batches.terms import at_batch_price
from prism_cli.endpoint.estimate import estimate
from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.endpoint.preview import preview
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import PrismError, RecipeError
from prism_cli.recipes.identity import run_folder
from prism_cli.teacher.teacher import LiveTeacher

# Stages that may ask a teacher, and the most questions that one which asks about fewer rows than it has puts.
ASKING: dict[str, Callable[[Any], int | None]] = {
    "sft": lambda recipe: None,
    "align": questions_of_align,
    "eval": lambda recipe: None,
    "drift": lambda recipe: None,
    "collect": lambda recipe: None,
    "warmup": questions_of_warmup,
}
Requests = Callable[[int | None, int], Iterator[EndpointRequest]]


def teacher_lines(stage: str, recipe: Any) -> list[tuple[str, str]]:
    """The plan's lines about asking; where rows or grammar can't be read yet, a line that says why."""
    if (teacher := _asked(stage, recipe)) is None:
        return []
    try:
        with _looking(stage, recipe, teacher) as (kept, requests):
            wanted = requests(None, recipe.samples if stage == "collect" else 1)
            return estimate(wanted, kept, ASKING[stage](recipe)).lines()
    except PrismError as error:
        return [("teacher calls", f"can't be told yet: {error}")]


def teacher_preview(stage: str, recipe: Any, count: int) -> str:
    """The first requests a stage would send; sends none and loads no weights.

    Raises:
        RecipeError: the recipe has no teacher to ask.
        PrismError: rows or grammar can't be read.
    """
    if (teacher := _asked(stage, recipe)) is None:
        raise RecipeError(f"`prism {stage}` asks no teacher here", "give --teacher-endpoint URL")
    with _looking(stage, recipe, teacher) as (kept, requests):
        return preview(islice(requests(count, 1), count), kept)


def _asked(stage: str, recipe: Any) -> LiveTeacher | None:
    """The teacher that a stage asks, or None."""
    reads_pairs = stage == "warmup" and recipe.discriminator.warmup.data is not None
    if stage not in ASKING or recipe.teacher is None or reads_pairs:
        return None
    teacher = resolve_teacher(recipe.teacher)
    return teacher if isinstance(teacher, LiveTeacher) and teacher.endpoint.url is not None else None


@contextmanager
def _looking(stage: str, recipe: Any, teacher: LiveTeacher) -> Iterator[tuple[KeptAnswers, Requests]]:
    import datasets

    datasets.disable_progress_bars()
    settings = response_settings(recipe)
    prompting = prompting_of(teacher, settings)
    held_out = recipe.eval_data if stage in ("sft", "align") else None
    sources = [one for one in (recipe.data, held_out) if one is not None]

    def requests(count: int | None, samples: int) -> Iterator[EndpointRequest]:
        for source in sources:
            for row in rows_ahead(source, settings, count):
                yield from (prompting.request(row, sample) for sample in range(samples))

    batch = stage == "collect" and recipe.batch
    endpoint = at_batch_price(teacher.endpoint) if batch else teacher.endpoint
    with store_to_read(endpoint, run_folder(stage, recipe), prompting.problem) as kept:
        yield kept, requests
