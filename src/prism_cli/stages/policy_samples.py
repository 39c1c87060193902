"""The policy's own responses to rows, lot by lot, so that a killed command goes on where it was."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli.evaluation.sampling import Sampled, multimodal, sample_responses
from prism_cli.models import Policy, device, placeholder_ids
from prism_cli.runs import write_atomically
from prism_cli.stages.build import progress_callback

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLED_AT_ONCE = 128


def kept_samples(
    policy: Policy,
    rows: "Dataset",
    wanted: Sequence[int],
    path: Path,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    label: str,
) -> list[list[int]]:
    """The policy's responses, (M,) token ids; kept batch by batch, so that a kill loses one batch at most.

    Args:
        policy: Who is sampled.
        rows: The prompts.
        wanted: (M,) the row of each response; a row may stand several times.
        path: JSON lines of token ids, continued where a killed command left it.
        max_tokens: Longest response.
        temperature: Sampling temperature.
        seed: Of the sampling.
        batch_size: Responses generated at once.
        label: Words of the progress bar.
    """
    done = whole_lines(path)
    bar, moved = progress_callback(label, len(wanted))
    lots = sampled_lots(
        policy,
        rows,
        wanted[len(done) :],
        SAMPLED_AT_ONCE,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed * 1_000_000 + len(done),
        batch_size=batch_size,
    )
    with bar, open(path, "a", encoding="utf-8") as file:
        moved(len(done))
        for responses in lots:
            file.writelines(f"{json.dumps(response.token_ids)}\n" for response in responses)
            file.flush()
            done += [response.token_ids for response in responses]
            moved(len(done))
    return done


def sampled_lots(
    policy: Policy,
    rows: "Dataset",
    wanted: Sequence[int],
    at_once: int,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> Iterator[list[Sampled]]:
    """The policy's responses by lots, each with a seed of its own: one sampled after a restart is the same.

    Args:
        policy: Who is sampled.
        rows: The prompts.
        wanted: (M,) the row of each response; a row may stand several times.
        at_once: Responses a lot.
        max_tokens: Longest response.
        temperature: Sampling temperature.
        seed: Of the first lot; the others add how many responses came before them.
        batch_size: Responses generated at once.
    """
    policy.model.to(device())
    for start in range(0, len(wanted), at_once):
        lot = wanted[start : start + at_once]
        found = {i: rows[i] for i in dict.fromkeys(lot)}
        yield sample_responses(
            policy.model,
            policy.processor,
            [multimodal(found[i]["prompt"], found[i]["images"]) for i in lot],
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed + start,
            suppress=placeholder_ids(policy.processor),
            batch_size=batch_size,
        )


def whole_lines(path: Path) -> list[list[int]]:
    """Samples kept before, in whole batches; what a kill left of another is cut off."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text.splitlines()[: text.count("\n") // SAMPLED_AT_ONCE * SAMPLED_AT_ONCE]
    write_atomically(path, "".join(f"{line}\n" for line in whole))
    return [json.loads(line) for line in whole]
