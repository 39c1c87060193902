"""The teacher of a recipe: the section as a value, and the teacher at work: probed, served if it is ours, counted."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich import get_console

from prism_cli import processes
from prism_cli.assembly.data import parts, resolve_data
from prism_cli.assembly.endpoint import OpenEndpoint, in_section, open_endpoint, resolve_endpoint, world_app
from prism_cli.assembly.response import FROM_PARTS
from prism_cli.endpoint.batches.terms import at_batch_price
from prism_cli.endpoint.budget import Price
from prism_cli.endpoint.endpoint import Endpoint, Sampling
from prism_cli.endpoint.estimate import Estimate, estimate
from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.errors import BudgetError, DataError, RecipeError, TeacherError
from prism_cli.progress import say
from prism_cli.recipes.sections import Data
from prism_cli.recipes.teachers import DatasetTeacher, EmbeddedTeacher, OpenAITeacher, Teacher
from prism_cli.responses import Grammar, ResponseSettings
from prism_cli.rewards.accuracy import is_correct
from prism_cli.runs.folder import Run
from prism_cli.teacher.answers import TeacherAnswers
from prism_cli.teacher.probe import probe, refuse_blind
from prism_cli.teacher.probe_pairs import ProbePair, number_pairs
from prism_cli.teacher.prompting import Example, Prompting
from prism_cli.teacher.server import ServedEndpoint
from prism_cli.teacher.sources import ColumnSource, EndpointSource, KeptSource
from prism_cli.teacher.teacher import AnyTeacher, LiveTeacher, RecordedTeacher
from prism_cli.worlds import world

if TYPE_CHECKING:
    from datasets import Dataset

SECTION, USAGE = "teacher", "teacher.json"
WORLD_MAX_TOKENS = 256  # the longest answer of a picture world's oracle
WORLD_URL = "http://127.0.0.1:PORT/v1"  # shown until the oracle is served


class TeacherQuestions(NamedTuple):
    """Questions that a stage will put to its teacher.

    Attributes:
        rows: The data sets it will be asked about.
        settings: The policy's parts, and its instruction as it stands in the rows.
        data: Where the rows are from; a picture world brings probes of its own.
        at_most: How many questions will be put, if fewer than there are rows.
        samples: Answers wanted a row.
    """

    rows: "tuple[Dataset, ...]"
    settings: ResponseSettings
    data: Data | None = None
    at_most: int | None = None
    samples: int = 1


def resolve_teacher(section: Teacher) -> AnyTeacher:
    """The teacher of a section."""
    return RecordedTeacher() if isinstance(section, DatasetTeacher) else resolve_live(section)


def resolve_live(section: OpenAITeacher | EmbeddedTeacher) -> LiveTeacher:
    """The teacher of a section that is asked."""
    common = {"sees": section.modality == "image", "check": section.check, "max_failed": section.max_failed}
    if isinstance(section, EmbeddedTeacher):
        name, variant = section.world, section.variant
        endpoint = Endpoint(WORLD_URL, f"{name}-{variant}", sampling=Sampling(0.0, WORLD_MAX_TOKENS), price=Price(0, 0))
        return LiveTeacher(
            endpoint._replace(limits=endpoint.limits._replace(attempts=section.attempts)),
            f"world {name} ({variant}), served on 127.0.0.1",
            # It reads rows as they are, but for an instruction that asks for what it can't write.
            from_parts=section.modality == "text",
            world=name,
            serve=lambda grammar: world_app(name, variant, grammar),
            **common,
        )
    endpoint = resolve_endpoint(section, section.max_image_pixels)
    return LiveTeacher(
        endpoint,
        str(endpoint) if endpoint.model else f"the model at {endpoint.url}, key from ${endpoint.key_env}",
        from_parts=section.instruction == FROM_PARTS,
        instruction=section.instruction,
        examples=tuple(Example(one.question, one.response) for one in section.examples),
        **common,
    )


def prompting_of(teacher: AnyTeacher, settings: ResponseSettings) -> Prompting:
    """Prompts of a teacher for a policy's parts.

    Args:
        teacher: Which.
        settings: The policy's parts, and its instruction as it stands before the rows' turns.

    Raises:
        RecipeError: nothing is left for a text-only teacher to write, or an example lacks a tag.
    """
    with in_section(SECTION, RecipeError):
        return teacher.prompting(settings.grammar, settings.instruction)


@contextmanager
def open_teacher(teacher: AnyTeacher, run: Run, questions: TeacherQuestions) -> Iterator[TeacherAnswers]:
    """A teacher's answers to a stage's questions; its endpoint, if ours, runs as long as the context.

    Before the first question the estimate is printed and the teacher is probed. Its calls are counted by the store, one
    by one, so that a cap holds over restarts; the run's teacher.json has the sums. Where several processes train, all
    enter it, and the main one asks for all.

    Args:
        teacher: Which.
        run: The run whose usage counts.
        questions: What will be asked.

    Raises:
        TeacherError: it is blind, can't be reached, or failed on more rows than allowed.
        DataError: two rows have one id; or only kept answers are read, and one is missing.
        BudgetError: a cap was reached.
    """
    from prism_cli.data.rows import rows_by_id  # here: datasets costs a second to import

    prompting, row_of = prompting_of(teacher, questions.settings), rows_by_id(*questions.rows)
    if isinstance(teacher, RecordedTeacher):
        columns = [zip(data["id"], data["teacher_response"], strict=True) for data in questions.rows]
        yield TeacherAnswers(ColumnSource(dict(pair for column in columns for pair in column)), prompting, row_of)
    elif not processes.is_main():
        with in_section(SECTION, BudgetError, TeacherError):
            processes.from_main(lambda: None)  # whether the main process can ask
            yield TeacherAnswers(ColumnSource({}), prompting, row_of)
    else:
        with ExitStack() as stack:
            opened: list[TeacherAnswers] = []
            opening = open_live_teacher(teacher, run, questions)
            processes.from_main(lambda: opened.append(stack.enter_context(opening)[0]))
            yield opened[0]
            opened[0].refuse_failures()


@contextmanager
def open_live_teacher(
    teacher: LiveTeacher, run: Run, questions: TeacherQuestions, batch: bool = False
) -> Iterator[tuple[TeacherAnswers, OpenEndpoint]]:
    """The answers of a teacher that is asked, in this process, and its endpoint; see `open_teacher`.

    Args:
        teacher: Which.
        run: The run whose usage counts.
        questions: What will be asked.
        batch: They will be asked in batches; the estimate is of their price.
    """
    from prism_cli.data.rows import rows_by_id

    prompting = prompting_of(teacher, questions.settings)
    account: Callable[[], str | None] = lambda: None  # noqa: E731
    try:
        with ExitStack() as stack:
            endpoint = served_endpoint(teacher, prompting.grammar, stack)
            opened = stack.enter_context(open_endpoint(endpoint, SECTION, run.folder, USAGE))
            ahead = _print_estimate(opened, prompting, questions, batch)
            if teacher.kept_only:
                source = _kept_source(opened, prompting, ahead)
            else:
                _probe(teacher, opened, prompting, questions)
                source = EndpointSource(opened.client(prompting.problem))
            row_of = rows_by_id(*questions.rows)
            answers = TeacherAnswers(source, prompting, row_of, teacher.max_failed, opened.keep_usage)
            account = lambda: answers.account(opened.budget.summary()["usd"])  # noqa: E731
            yield answers, opened
    finally:
        if (line := account()) is not None:
            say(line)


def served_endpoint(teacher: LiveTeacher, grammar: Grammar, stack: ExitStack) -> Endpoint:
    """The endpoint of a teacher; one of our own is served as long as the stack is open.

    Args:
        teacher: Which.
        grammar: The parts it writes.
        stack: Closes the server.
    """
    if teacher.serve is None:
        return teacher.endpoint
    served = stack.enter_context(ServedEndpoint(teacher.serve(grammar)))
    return teacher.endpoint._replace(url=served.url)


def _print_estimate(opened: OpenEndpoint, prompting: Prompting, questions: TeacherQuestions, batch: bool) -> Estimate:
    from prism_cli.data.rows import raw_rows

    endpoint = at_batch_price(opened.endpoint) if batch else opened.endpoint
    requests = (
        prompting.request(row, sample)
        for source in questions.rows
        for row in raw_rows(source)
        for sample in range(questions.samples)
    )
    ahead = estimate(requests, KeptAnswers(endpoint, opened.store, prompting.problem), questions.at_most)
    get_console().print(ahead.table())
    return ahead


def _kept_source(opened: OpenEndpoint, prompting: Prompting, ahead: Estimate) -> KeptSource:
    """The kept answers of a teacher that is not asked any more.

    Raises:
        DataError: one is missing.
    """
    if ahead.calls:
        raise DataError(
            f"the store {opened.store.path} has no answer to {ahead.calls} of {ahead.calls + ahead.kept} questions",
            "give teacher.endpoint=URL, or the data, parts and teacher settings with which it was filled",
        )
    return KeptSource(opened.kept(prompting.problem), on_answer=opened.budget.reuse)


def _probe(teacher: LiveTeacher, opened: OpenEndpoint, prompting: Prompting, questions: TeacherQuestions) -> None:
    """Stops before a teacher is asked that should see and doesn't."""
    from prism_cli.data.rows import has_pictures

    if teacher.check and prompting.sees and any(map(has_pictures, questions.rows)):
        with closing(opened.client(attempts=1)) as client:
            result = probe(client, prompting, probe_pairs(teacher, questions.data), verified)
        refuse_blind(result, f"{opened.endpoint.served_name} at {opened.endpoint.url}")


def verified(text: str, answer: str, question: str) -> bool:
    """Whether an answer is right, by the verifier."""
    return is_correct(text, [answer], question)


def probe_pairs(teacher: LiveTeacher, data: Data | None) -> list[ProbePair]:
    """The pairs of pictures to ask about: a picture world's own where rows or teacher are of one, else numbers.

    Args:
        teacher: Which is asked.
        data: Where a stage's rows are from.
    """
    name = teacher.world or _world_of(data)
    if name is None:
        return number_pairs()
    return [ProbePair.of(*probe) for probe in world(name).probe()]


def _world_of(data: Data | None) -> str | None:
    sources = [] if data is None else parts(resolve_data(data))
    return next((source.world for _, _, source in sources if source.world is not None), None)
