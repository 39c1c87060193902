"""The policy's own responses to rows, lot by lot, so that a killed command goes on where it was."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli.assembly.generation import Engine
from prism_cli.errors import DataError
from prism_cli.evaluation.sampling import Sample, Sampled
from prism_cli.models import multimodal
from prism_cli.progress import progress
from prism_cli.runs.files import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLED_AT_ONCE = 128
# vLLM works on hundreds at a time, and at a lot's end waits for the longest.
SAMPLED_AT_ONCE_BY_VLLM = 8 * SAMPLED_AT_ONCE


def at_once(engine: Engine) -> int:
    """How many responses an engine is asked for at a time; what is kept of them is kept together."""
    return SAMPLED_AT_ONCE_BY_VLLM if engine.engine == "vllm" else SAMPLED_AT_ONCE


def kept_samples(
    sample: Sample,
    rows: "Dataset",
    wanted: Sequence[int],
    path: Path,
    *,
    temperature: float,
    seed: int,
    label: str,
    lot: int = SAMPLED_AT_ONCE,
) -> list[list[int]]:
    """The policy's responses, (M,) token ids; kept batch by batch, so that a kill loses one batch at most.

    Args:
        sample: Who is sampled, and how (`generation.sampler`).
        rows: The prompts.
        wanted: (M,) the row of each response; a row may stand several times.
        path: JSON lines of token ids, continued where a killed command left it.
        temperature: Sampling temperature.
        seed: Of the sampling.
        label: Words of the progress bar.
        lot: Responses asked for at a time.
    """
    done = whole_lines(path)
    left, first_seed = wanted[len(done) :], seed * 1_000_000 + len(done)
    lots = sampled_lots(sample, rows, left, lot, temperature=temperature, seed=first_seed)
    with progress(label, len(wanted)) as on_progress, open(path, "a", encoding="utf-8") as file:
        on_progress(len(done))
        for responses in lots:
            file.writelines(f"{json.dumps(response.token_ids)}\n" for response in responses)
            file.flush()
            done += [response.token_ids for response in responses]
            on_progress(len(done))
    return done


def sampled_lots(
    sample: Sample,
    rows: "Dataset",
    wanted: Sequence[int],
    at_once: int,
    *,
    temperature: float,
    seed: int,
) -> Iterator[list[Sampled]]:
    """The policy's responses by lots, each with a seed of its own: one sampled after a restart is the same.

    Args:
        sample: Who is sampled, and how.
        rows: The prompts.
        wanted: (M,) the row of each response; a row may stand several times.
        at_once: Responses a lot.
        temperature: Sampling temperature.
        seed: Of the first lot; the others add how many responses came before them.

    Raises:
        DataError: a prompt is longer than the engine takes.
    """
    for start in range(0, len(wanted), at_once):
        lot = wanted[start : start + at_once]
        found = {i: rows[i] for i in dict.fromkeys(lot)}
        conversations = [multimodal(found[i]["prompt"], found[i]["images"]) for i in lot]
        responses = sample(conversations, temperature=temperature, seed=seed + start)
        for i, response in zip(lot, responses, strict=True):
            if response.failed:
                raise DataError(f"row {found[i]['id']}: {response.failed}", "shorten it, or drop the row")
        yield responses


def whole_lines(path: Path) -> list[list[int]]:
    """Samples kept before, in whole batches; what a kill left of another is cut off."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text.splitlines()[: text.count("\n") // SAMPLED_AT_ONCE * SAMPLED_AT_ONCE]
    write_atomically(path, "".join(f"{line}\n" for line in whole))
    return [json.loads(line) for line in whole]
