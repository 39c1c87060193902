"""A policy's own responses to rows, kept on disk chunk by chunk, so that a killed command goes on where it was."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prism_cli.errors import DataError
from prism_cli.evaluation.backend import Sample, Sampled
from prism_cli.progress import progress
from prism_cli.runs.chunks import chunks, in_chunks

if TYPE_CHECKING:
    from datasets import Dataset

# Responses transformers is asked for in one go; it generates them in smaller batches.
CHUNK = 128


class SamplingPlan(NamedTuple):
    """The draw of responses.

    Attributes:
        temperature: Sampling temperature.
        seed: Each chunk's own seed is a million times this one, plus the number of responses before the chunk.
        chunk: Responses a chunk.
    """

    temperature: float
    seed: int
    chunk: int


def kept_samples(
    sample: Sample, rows: "Dataset", wanted: Sequence[int], plan: SamplingPlan, path: Path, label: str
) -> list[list[int]]:
    """The policy's responses, (M,) token ids.

    Args:
        sample: Answers conversations.
        rows: The prompts.
        wanted: (M,) the row of each response; a row may stand several times.
        plan: How they are drawn.
        path: JSON lines of token ids, continued where a killed command left it.
        label: Text of the progress bar.

    Raises:
        DataError: a prompt is longer than the backend takes.
    """

    def make(span: range) -> list[list[int]]:
        responses = sampled_chunk(sample, rows, wanted[span.start : span.stop], plan, span.start)
        return [response.token_ids for response in responses]

    with progress(label, len(wanted)) as on_progress:
        return in_chunks(path, chunks(len(wanted), plan.chunk), make, on_progress)


def sampled_chunk(
    sample: Sample, rows: "Dataset", wanted: Sequence[int], plan: SamplingPlan, before: int
) -> list[Sampled]:
    """A chunk of the policy's responses, with a seed of its own: sampled after a restart it is the same.

    Args:
        sample: Answers conversations.
        rows: The prompts.
        wanted: (M,) the row of each response of the chunk.
        plan: How they are drawn.
        before: Responses before this chunk.

    Raises:
        DataError: a prompt is longer than the backend takes.
    """
    from prism_cli.models import multimodal

    prompts = {index: rows[index] for index in dict.fromkeys(wanted)}
    conversations = [multimodal(prompts[index]["prompt"], prompts[index]["images"]) for index in wanted]
    responses = sample(conversations, temperature=plan.temperature, seed=plan.seed * 1_000_000 + before)
    for index, response in zip(wanted, responses, strict=True):
        if response.failed:
            raise DataError(f"row {prompts[index]['id']}: {response.failed}", "shorten it, or drop the row")
    return responses
