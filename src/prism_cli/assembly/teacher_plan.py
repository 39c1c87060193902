"""The teacher in a plan: what a stage would ask it and what that takes, and the first requests; asks nobody."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

from prism_cli.assembly.data import rows_ahead
from prism_cli.assembly.discriminator import questions_of_align, questions_of_warmup
from prism_cli.assembly.endpoint import store_to_read
from prism_cli.assembly.response import RespondingRecipe, response_settings
from prism_cli.assembly.teacher import prompting_of, resolve_teacher
from prism_cli.endpoint.batches.terms import at_batch_price
from prism_cli.endpoint.estimate import estimate
from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.endpoint.preview import preview
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import PrismError, RecipeError
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.section import Section
from prism_cli.recipes.sections import Data
from prism_cli.recipes.stages import AlignRecipe, CollectRecipe, DriftRecipe, EvalRecipe, SFTRecipe, WarmupRecipe
from prism_cli.recipes.teachers import Teacher
from prism_cli.teacher.teacher import LiveTeacher

Requests = Callable[[int | None], Iterator[EndpointRequest]]


class _Questions(NamedTuple):
    """The questions that a stage puts to its teacher.

    Attributes:
        recipe: The stage's.
        teacher: Its section.
        data: The sections of the rows it asks about.
        at_most: The most questions, where they are fewer than the rows.
        samples: Answers per row.
        batch: Through the batch endpoint.
    """

    recipe: RespondingRecipe
    teacher: Teacher | None
    data: Sequence[Data | None]
    at_most: int | None = None
    samples: int = 1
    batch: bool = False


def teacher_lines(stage: str, recipe: Section) -> list[tuple[str, str]]:
    """The plan's lines about asking; where rows or grammar can't be read yet, a line that says why."""
    try:
        if (questions := _questions(recipe)) is None:
            return []
        with _looking(stage, questions) as (kept, requests):
            return [] if kept is None else estimate(requests(None), kept, questions.at_most).lines()
    except PrismError as error:
        return [("teacher calls", f"not known yet: {error}")]


def teacher_preview(stage: str, recipe: Section, count: int) -> str:
    """The first requests a stage would send; sends none and loads no weights.

    Raises:
        RecipeError: the recipe has no teacher to ask.
        PrismError: rows or grammar can't be read.
    """
    if (questions := _questions(recipe)) is not None:
        with _looking(stage, questions) as (kept, requests):
            if kept is not None:
                return preview(islice(requests(count), count), kept)
    raise RecipeError(f"`prism {stage}` asks no teacher here", "give --teacher-endpoint URL")


def _questions(recipe: Section) -> _Questions | None:
    """The questions of a stage that has a teacher; None for any other."""
    match recipe:
        case SFTRecipe():
            return _Questions(recipe, recipe.teacher, (recipe.data, recipe.eval_data))
        case AlignRecipe():
            return _Questions(recipe, recipe.teacher, (recipe.data, recipe.eval_data), questions_of_align(recipe))
        case WarmupRecipe() if recipe.discriminator.warmup.data is None:
            return _Questions(recipe, recipe.teacher, (recipe.data,), questions_of_warmup(recipe))
        case EvalRecipe() | DriftRecipe():
            return _Questions(recipe, recipe.teacher, (recipe.data,))
        case CollectRecipe():
            return _Questions(recipe, recipe.teacher, (recipe.data,), samples=recipe.samples, batch=recipe.batch)
        case _:
            return None


@contextmanager
def _looking(stage: str, questions: _Questions) -> Iterator[tuple[KeptAnswers | None, Requests]]:
    """The answers that a stage's teacher has given, None where nobody is asked, and the requests it would get."""
    teacher = None if questions.teacher is None else resolve_teacher(questions.teacher)
    if not isinstance(teacher, LiveTeacher) or teacher.endpoint.url is None:
        yield None, lambda count: iter(())
        return
    import datasets

    datasets.disable_progress_bars()
    settings = response_settings(questions.recipe)
    prompting = prompting_of(teacher, settings)

    def requests(count: int | None) -> Iterator[EndpointRequest]:
        samples = questions.samples if count is None else 1
        for source in filter(None, questions.data):
            for row in rows_ahead(source, settings, count):
                yield from (prompting.request(row, sample) for sample in range(samples))

    endpoint = at_batch_price(teacher.endpoint) if questions.batch else teacher.endpoint
    with store_to_read(endpoint, run_folder(stage, questions.recipe), prompting.problem) as kept:
        yield kept, requests
