"""The model that judges free text: what asking it will take, and asking it."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import first_rows
from prism_cli.assembly.endpoint import UNNAMED, budget_of, client_of, model_of, price_of, shown_endpoint, store_path
from prism_cli.assembly.response import response_settings
from prism_cli.assembly.teacher import spent_before
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.estimate import CHARACTERS_A_TOKEN
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import BudgetError, PrismError, TeacherError
from prism_cli.progress import say
from prism_cli.recipes.stages import RLRecipe
from prism_cli.recipes.teachers import LLMJudge
from prism_cli.recipes.training import DAPO
from prism_cli.rewards.verdict import Asked, is_free_text, judge_messages, read_verdict
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import read_manifest
from prism_cli.teacher.teachers import EndpointTeacher, Failed

Ask = Callable[[Sequence[Asked]], Sequence[bool | None]]

USAGE = "llm_judge.json"
# Seconds for verdicts under way when a run ends.
DRAIN = 30.0
# So many rows tell what share has free-text answers.
LOOKED_AT = 64
# A judge that has given none of its first so many verdicts will give none.
HOPELESS = 20


def llm_judge_lines(judge: LLMJudge, recipe: RLRecipe) -> Plan:
    """The plan's lines about the judge, by the first rows; asks nobody.

    Raises:
        RecipeError: it has no endpoint.
    """
    who = f"{judge.model or UNNAMED} at {shown_endpoint(judge)}, key from ${judge.api_key_env}"
    lines = [("LLM judge", f"{who}; asked where the rules find free text wrong")]
    try:
        assert recipe.data is not None, "check_data refuses a recipe without data"
        rows = first_rows(recipe.data, response_settings(recipe), LOOKED_AT)
    except PrismError as error:
        return [*lines, ("LLM judge calls", f"can't be told yet: {error}")]
    free = [row for row in rows if any(map(is_free_text, row["answers"]))]
    step = len(free) * recipe.prompts_per_step * recipe.rollouts / max(1, len(rows))
    if isinstance(recipe.algorithm, DAPO) and recipe.algorithm.max_rounds:
        step *= recipe.algorithm.oversample  # a round
    cap = f"at most {judge.max_calls:,}" if judge.max_calls else "no cap (rewards.llm_judge.max_calls)"
    known = f"{len(free)} of the first {len(rows)} rows have free-text answers"
    lines.append(("LLM judge calls", f"up to {step:,.0f} a step; {known}; {cap}"))
    price = price_of(judge)
    if price is None or not free:
        return [*lines, ("LLM judge cost", "no price given: tokens are counted, dollars are not")] if free else lines
    asked = [Asked(row["prompt"][-1]["content"], tuple(row["answers"]), row["answers"][0]) for row in free]
    characters = sum(len(message["content"]) for one in asked for message in judge_messages(one))
    usd = price.usd(round(characters / CHARACTERS_A_TOKEN / len(free)), judge.max_tokens) or 0.0
    stop = f"; stops at ${judge.max_usd:g}" if judge.max_usd is not None else ""
    return [*lines, ("LLM judge cost", f"at most about ${usd * step:,.4f} a step, at max_tokens a verdict{stop}")]


@contextmanager
def open_llm_judge(section: LLMJudge, run_folder: Path, key: str = "rewards.llm_judge") -> Iterator[Ask]:
    """A function that has answers judged, all at a time; what is kept costs nothing.

    Args:
        section: Whom to ask.
        run_folder: Whose spending counts; its llm_judge.json has the sums.
        key: The section's place in the recipe, for messages.

    Raises:
        TeacherError: it can't be reached; later, it failed for good or never gives a verdict.
        BudgetError: later, a cap was reached.
    """
    with ExitStack() as stack:
        store = AnswerStore(store_path(section, run_folder))
        stack.callback(store.close)
        usage, run = run_folder / USAGE, f"{run_folder.resolve()} {read_manifest(run_folder).get('created', '')}"
        budget = budget_of(section, spent_before(usage, store.spent(run)), run)
        stack.callback(lambda: write_atomically(usage, json.dumps(budget.summary(), indent=2)))
        with _of_the_judge(key):
            model = model_of(section, store)
            # A name of its own: short verdicts say nothing about what a teacher of the same model costs.
            named = section.model_copy(update={"name": section.name or f"{model}, judge of answers"})
            kept = {"attempts": section.attempts, "check": _not_a_verdict}
            client = client_of(named, shown_endpoint(section), model, store, budget, **kept)
        judge = _Judge(client, key)
        stack.callback(judge.say)

        def close(kind: type[BaseException] | None, *_: object) -> None:
            client.close(DRAIN if kind is None or issubclass(kind, Exception) else 0)

        stack.push(close)
        yield judge.ask


class _Judge:
    """Puts answers to a client, and counts."""

    def __init__(self, client: EndpointClient, key: str):
        self._key = key
        self._model, self._teacher = client.model, EndpointTeacher(client)
        self._judged, self._failed = 0, Counter[str]()

    def ask(self, answers: Sequence[Asked]) -> list[bool | None]:
        """Verdicts in order, None where there is none."""
        requests = [EndpointRequest(judge_messages(one), row=f"answer {one.answer[:40]!r}") for one in answers]
        with _of_the_judge(self._key):
            found = self._teacher.answers(requests)
        self._judged += len(answers)
        self._failed.update(said.reason for said in found if isinstance(said, Failed))
        if self._failed.total() == self._judged >= HOPELESS:
            raise TeacherError(
                f"{self._key}: {self._model} gave no verdict on any of {self._judged} answers ({self._reasons()})",
                "see what it writes: prism teacher log; a verdict is YES or NO and not a word more, and a model that "
                f"reasons first needs a larger {self._key}.max_tokens",
            )
        return [None if isinstance(said, Failed) else read_verdict(said.text) for said in found]

    def say(self) -> None:
        """Prints what it did."""
        if self._judged:
            unscored = f", {self._failed.total():,} left unscored ({self._reasons()})" if self._failed else ""
            text = f"LLM judge: {self._judged:,} answers judged{unscored}"
            say(text)

    def _reasons(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self._failed.most_common())


def _not_a_verdict(text: str) -> str | None:
    return None if read_verdict(text) is not None else f"neither YES nor NO: {text.strip()[:60]!r}"


@contextmanager
def _of_the_judge(key: str) -> Iterator[None]:
    """Errors that speak of the teacher speak of the judge."""
    try:
        yield
    except (BudgetError, TeacherError) as error:
        kind: type[PrismError] = BudgetError if isinstance(error, BudgetError) else TeacherError
        raise kind(f"{key}: {error}", _for_the_judge(error.hint, key)) from error


def _for_the_judge(hint: str | None, key: str) -> str | None:
    if hint is None:
        return None
    hint = re.sub(r"--max-teacher-\w+ \((teacher\.\w+)\)", r"\1", hint)
    hint = re.sub(r"--teacher-(endpoint|model)", r"teacher.\1", hint)
    return re.sub(r"\bteacher\.(?=\w)", f"{key}.", hint)
