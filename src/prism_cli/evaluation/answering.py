"""Answering: a run's responses to all questions, greedy and sampled, kept on disk chunk by chunk until they are judged.

A line of a samples file is a question: `id`, `greedy` (a response) and `samples` (a list of them).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.errors import CheckpointError
from prism_cli.evaluation.backend import Sample, Sampled
from prism_cli.progress import progress
from prism_cli.runs.chunks import chunks, in_chunks, kept_results
from prism_cli.runs.files import read_lines

if TYPE_CHECKING:
    from datasets import Dataset

Line = dict[str, Any]
KINDS: tuple[str, ...] = ("greedy", "samples")


class Pass(NamedTuple):
    """All questions answered once.

    Attributes:
        kind: "greedy" or "samples".
        number: Its place among those of its kind.
        temperature: 0 for greedy.
        seed: Of its first chunk; the others add the number of responses before them.
    """

    kind: str
    number: int
    temperature: float
    seed: int

    @property
    def label(self) -> str:
        """The mark of its responses on disk."""
        return f"{self.kind}/{self.number}"


def passes(greedy: bool, samples: int, temperature: float, seed: int) -> list[Pass]:
    """The greedy pass, where there is one, then the sampled ones, each with a seed of its own."""
    seeds = (1_000_000 * (1000 * seed + number) for number in range(samples))
    sampled = [Pass("samples", number, temperature, start) for number, start in enumerate(seeds)]
    return [Pass("greedy", 0, 0.0, 0), *sampled] if greedy else sampled


def missing_passes(wanted: Sequence[Pass], lines: Sequence[Mapping[str, Any]]) -> list[Pass]:
    """The passes that a samples file lacks; all where it has no lines."""
    return [one for one in wanted if not lines or len(responses_of(lines[0], one.kind)) <= one.number]


def responses_of(line: Mapping[str, Any], kind: str) -> list[Line]:
    """A question's responses of a kind, "greedy" or "samples"."""
    responses = line.get(kind) or []
    return responses if isinstance(responses, list) else [responses]


def answered(sample: Sample, rows: "Dataset", wanted: Sequence[Pass], chunk: int, path: Path, label: str) -> list[Line]:
    """Text and length of each response, pass by pass: `id`, `pass`, `text`, `length`, `truncated`, or `failed`.

    Args:
        sample: Answers conversations.
        rows: The questions.
        wanted: The passes.
        chunk: Responses a chunk, all of one pass.
        path: JSON lines, continued where a killed command left them.
        label: Text of the progress bar.

    Raises:
        CheckpointError: the file has responses to other questions.
    """
    from prism_cli.models import multimodal

    count, ids = len(rows), list(rows["id"])
    if (lines := read_lines(path)) and lines[0]["pass"] != wanted[0].label:
        path.unlink()  # they stand in the samples file: a kill came between writing that and removing this one
    spans = [
        range(number * count + span.start, number * count + span.stop)
        for number in range(len(wanted))
        for span in chunks(count, chunk)
    ]
    done = [line["id"] for line in kept_results(path, spans)]
    refuse_other_rows(path.parent, done, (ids * len(wanted))[: len(done)])

    with progress(label, len(wanted) * count) as on_progress:

        def make(span: range) -> list[Line]:
            number, first = divmod(span.start, count)
            one = wanted[number]
            asked = [rows[first + i] for i in range(len(span))]
            responses = sample(
                [multimodal(row["prompt"], row["images"]) for row in asked],
                temperature=one.temperature,
                seed=one.seed + first,
                on_batch=lambda more: on_progress(span.start + more),
            )
            pairs = zip(asked, responses, strict=True)
            return [{"id": row["id"], "pass": one.label, **_facts(response)} for row, response in pairs]

        return in_chunks(path, spans, make, on_progress)


def refuse_other_rows(folder: Path, answered: Sequence[str], ids: Sequence[str]) -> None:
    """Refuses to pair responses with questions that changed underneath.

    Args:
        folder: The evaluation's, for the message.
        answered: (N,) ids of the questions answered.
        ids: (N,) those of the data.

    Raises:
        CheckpointError: they differ.
    """
    if list(answered) != list(ids):
        raise CheckpointError(
            f"{folder} has answers to other rows than its data has now",
            "start over with --fresh, or put the data back as it was",
        )


def by_question(
    ids: Sequence[str], before: Sequence[Mapping[str, Any]], answers: Sequence[Line], greedy: bool
) -> list[Line]:
    """The lines of a samples file: earlier responses without their verdicts, then the new ones.

    Args:
        ids: (N,) the questions.
        before: (N,) lines of the samples file, or none.
        answers: Responses pass by pass, each pass (N,).
        greedy: The first response of a question is its greedy one.
    """
    lines = []
    for index, (id, old) in enumerate(zip(ids, before or [{}] * len(ids), strict=True)):
        earlier = [response for kind in KINDS for response in responses_of(old, kind)]
        responses = [_plain(response) for response in (*earlier, *answers[index :: len(ids)])]
        first = {"greedy": responses[0]} if greedy else {}
        lines.append({"id": id, **first, "samples": responses[greedy:]})
    return lines


def _facts(response: Sampled) -> Line:
    if response.failed is not None:
        return {"failed": response.failed}
    return {"text": response.text, "length": len(response.token_ids), "truncated": float(response.truncated)}


def _plain(response: Mapping[str, Any]) -> Line:
    return {key: response[key] for key in ("text", "length", "truncated", "failed") if key in response}
