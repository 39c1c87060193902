"""The LLM judge of a recipe: what grading free text with it will take, and the judge at work."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prism_cli.assembly.checks import Plan
from prism_cli.assembly.endpoint import open_endpoint, resolve_endpoint
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.estimate import CHARACTERS_A_TOKEN
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import RecipeError, TeacherError
from prism_cli.progress import say
from prism_cli.recipes.teachers import LLMJudge
from prism_cli.rewards.verdict import GivenAnswer, grading_messages, is_free_text, read_verdict
from prism_cli.teacher.sources import EndpointSource, Failed

Ask = Callable[[Sequence[GivenAnswer]], Sequence[bool | None]]

USAGE = "llm_judge.json"
# An LLM judge that has given none of its first so many verdicts will give none.
MIN_FAILED_TO_STOP = 20


def resolve_llm_judge(section: LLMJudge, key: str) -> Endpoint:
    """The endpoint of an LLM judge.

    Args:
        section: Which.
        key: Its place in the recipe.

    Raises:
        RecipeError: it has no endpoint.
    """
    if section.endpoint is None:
        raise RecipeError(f"{key} has no endpoint", f"give {key}.endpoint=URL")
    return resolve_endpoint(section)


def llm_judge_line(section: LLMJudge, key: str) -> tuple[str, str]:
    """The plan's line about which LLM judge is asked, and when."""
    return "LLM judge", f"{resolve_llm_judge(section, key)}; asked where the rules find free text wrong"


def llm_judge_costs(section: LLMJudge, key: str, rows: Sequence[dict[str, Any]], answers: float) -> Plan:
    """The plan's lines about calls and dollars, by the first rows; asks nobody.

    Args:
        section: Which LLM judge.
        key: Its place in the recipe.
        rows: The first rows.
        answers: Answers a step that are graded by rules or LLM judge.
    """
    endpoint = resolve_llm_judge(section, key)
    free = [row for row in rows if any(map(is_free_text, row["answers"]))]
    calls = len(free) * answers / max(1, len(rows))
    cap = f"at most {endpoint.caps.max_calls:,}" if endpoint.caps.max_calls else f"no cap ({key}.max_calls)"
    known = f"{len(free)} of the first {len(rows)} rows have free-text answers"
    lines = [("LLM judge calls", f"up to {calls:,.0f} a step; {known}; {cap}")]
    if not free:
        return lines
    if endpoint.price is None:
        return [*lines, ("LLM judge cost", "no price given: tokens are counted, dollars are not")]
    texts = [
        message["content"]
        for row in free
        for message in grading_messages(
            GivenAnswer(row["prompt"][-1]["content"], tuple(row["answers"]), row["answers"][0])
        )
    ]
    tokens = round(sum(map(len, texts)) / CHARACTERS_A_TOKEN / len(free))
    usd = (endpoint.price.usd(tokens, endpoint.sampling.max_tokens) or 0.0) * calls
    stop = f"; stops at ${endpoint.caps.max_usd:g}" if endpoint.caps.max_usd is not None else ""
    return [*lines, ("LLM judge cost", f"at most about ${usd:,.4f} a step, at max_tokens a verdict{stop}")]


@contextmanager
def open_llm_judge(section: LLMJudge, key: str, folder: Path) -> Iterator[Ask]:
    """A function that has answers graded, all at a time; what is kept costs nothing.

    Args:
        section: Which LLM judge.
        key: Its place in the recipe.
        folder: The run's; its spending counts, and its llm_judge.json has the sums.

    Raises:
        TeacherError: it can't be reached; later, it failed for good or never gives a verdict.
        BudgetError: later, a cap was reached.
    """
    judge = None
    try:
        # A name of its own: short verdicts say nothing about what a teacher of the same model costs.
        with open_endpoint(resolve_llm_judge(section, key), key, folder, USAGE, "judge of answers") as opened:
            judge = _LLMJudge(opened.client(_not_a_verdict))
            yield judge.ask
    finally:
        if judge is not None:
            judge.say()


class _LLMJudge:
    """Puts answers to a client, and counts."""

    def __init__(self, client: EndpointClient):
        self._model, self._source = client.model, EndpointSource(client)
        self._graded, self._failed = 0, Counter[str]()

    def ask(self, answers: Sequence[GivenAnswer]) -> list[bool | None]:
        """Verdicts in order, None where there is none."""
        requests = [EndpointRequest(grading_messages(one), row=f"answer {one.answer[:40]!r}") for one in answers]
        replies = self._source.answers(requests)
        self._graded += len(answers)
        self._failed.update(reply.reason for reply in replies if isinstance(reply, Failed))
        if self._failed.total() == self._graded >= MIN_FAILED_TO_STOP:
            raise TeacherError(
                f"{self._model} gave no verdict on any of {self._graded} answers ({self._reasons()})",
                "see what it writes: prism teacher log; a verdict is YES or NO and not a word more, and a model that "
                "reasons first needs a larger {max_tokens}",
                ("max_tokens",),
            )
        return [None if isinstance(reply, Failed) else read_verdict(reply.text) for reply in replies]

    def say(self) -> None:
        """Prints what it did."""
        if self._graded:
            unscored = f", {self._failed.total():,} left unscored ({self._reasons()})" if self._failed else ""
            say(f"LLM judge: {self._graded:,} answers graded{unscored}")

    def _reasons(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self._failed.most_common())


def _not_a_verdict(text: str) -> str | None:
    return None if read_verdict(text) is not None else f"neither YES nor NO: {text.strip()[:60]!r}"
