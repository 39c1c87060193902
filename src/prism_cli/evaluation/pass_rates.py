"""Pass rates: how often a policy solves each prompt, sampled, graded and kept on disk chunk by chunk."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.evaluation.backend import Sample, Sampled
from prism_cli.evaluation.kept_samples import SamplingPlan, sampled_chunk
from prism_cli.progress import progress
from prism_cli.responses import Grammar
from prism_cli.runs.chunks import chunks, in_chunks

if TYPE_CHECKING:
    from datasets import Dataset

Grade = Callable[[Mapping[str, Any], Sampled], dict[str, Any]]
Verify = Callable[[str, Sequence[str], str], bool]


class Rate(NamedTuple):
    """A prompt's result.

    Attributes:
        id: The row's.
        right: Responses with a right answer; a malformed one has none.
        malformed: Responses that don't follow the grammar.
    """

    id: str
    right: int
    malformed: int


def pass_rates(
    sample: Sample, rows: "Dataset", samples: int, plan: SamplingPlan, grade: Grade, path: Path
) -> list[Rate]:
    """Each row's result, (N,); what an earlier start sampled is read.

    Args:
        sample: Answers conversations.
        rows: The prompts, each once.
        samples: Responses a prompt.
        plan: How they are drawn; a chunk holds all responses of its prompts.
        grade: A row's prompt and answers, and a response to it → the response with its verdicts.
        path: JSON lines: each prompt's graded responses.
    """
    texts = rows.select_columns(["id", "prompt", "answers"])  # pictures need not be decoded for this

    def make(span: range) -> list[dict[str, Any]]:
        wanted = [index for index in span for _ in range(samples)]
        responses = sampled_chunk(sample, rows, wanted, plan, span.start * samples)
        lines = []
        for index in span:
            first = (index - span.start) * samples
            row: dict[str, Any] = texts[index]
            lines.append({"id": row["id"], "samples": [grade(row, one) for one in responses[first : first + samples]]})
        return lines

    with progress(f"{samples} responses a prompt", len(rows)) as on_progress:
        spans = chunks(len(rows), plan.chunk // samples)
        return [rate_of(line) for line in in_chunks(path, spans, make, on_progress)]


def rate_of(line: Mapping[str, Any]) -> Rate:
    """A prompt's result by its line on disk."""
    responses = line["samples"]
    right = sum(response["accuracy"] == 1 for response in responses)
    return Rate(line["id"], right, sum(response["well_formed"] == 0 for response in responses))


def grader(grammar: Grammar, verify: Verify) -> Grade:
    """A function that gives a response its verdicts, under the names of `prism eval`.

    Args:
        grammar: The policy's.
        verify: Whether an answer equals one of the accepted ones, for a question.
    """

    def grade(row: Mapping[str, Any], sampled: Sampled) -> dict[str, Any]:
        response, question = grammar.parse(sampled.text), row["prompt"][-1]["content"]
        right = response.answer is not None and verify(response.answer, row["answers"], question)
        verdicts = {"accuracy": float(right), "well_formed": float(response.well_formed)}
        return {"text": sampled.text, **verdicts, "length": len(sampled.token_ids)}

    return grade
