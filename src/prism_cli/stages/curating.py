"""How often a policy solves each prompt: sampled, verified and kept lot by lot, so that a kill costs one lot."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.assembly.generation import chosen_engine, sampler
from prism_cli.errors import CheckpointError
from prism_cli.progress import progress
from prism_cli.recipes.stages import CurateRecipe
from prism_cli.responses import Grammar
from prism_cli.rewards.accuracy import is_correct
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLES = "samples.jsonl"


class Rate(NamedTuple):
    """How a prompt went.

    Attributes:
        id: The row's.
        right: Responses with a right answer; a malformed one has none.
        malformed: Responses that don't follow the grammar.
    """

    id: str
    right: int
    malformed: int


def pass_rates(recipe: CurateRecipe, folder: Path, grammar: Grammar, rows: "Dataset") -> list[Rate]:
    """How each row went, (N,); what an earlier start sampled is read, and with all of it no model is loaded.

    Args:
        recipe: Who is sampled, and how.
        folder: The run's; each prompt's responses with their verdicts are kept there.
        grammar: The policy's.
        rows: The prompts, each once.
    """
    # A lot is what is generated at once, in whole prompts.
    lot = max(1, recipe.batch_size // recipe.samples)
    rates = _kept(folder / SAMPLES, lot, len(rows))
    if len(rates) == len(rows):
        return rates
    with (
        progress(f"{recipe.samples} responses a prompt", len(rows)) as on_progress,
        open(folder / SAMPLES, "a", encoding="utf-8") as file,
    ):
        on_progress(len(rates))
        for texts, lengths in _sampled(recipe, rows, len(rates), lot):
            asked = rows.select(range(len(rates), len(rates) + len(texts)))
            lines = [
                {"id": row["id"], "samples": _verdicts(grammar, row, *given)}
                for row, given in zip(_texts_of(asked), zip(texts, lengths, strict=True), strict=True)
            ]
            file.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            file.flush()
            rates += map(_rate, lines)
            on_progress(len(rates))
    return rates


def refuse_other_rows(run: Run, rows: "Dataset") -> None:
    """Keeps samples from being taken for answers to other questions.

    Raises:
        CheckpointError: the data changed since the run began.
    """
    digest = hashlib.sha256()
    for row in _texts_of(rows):
        digest.update(json.dumps([row["id"], row["prompt"], row["answers"]]).encode())
    if run.manifest.get("rows", digest.hexdigest()) != digest.hexdigest():
        raise CheckpointError(
            f"{run.folder} was sampled on other rows than the data holds now",
            "choose another --output, or start over with --fresh",
        )
    run.update(rows=digest.hexdigest())


def _sampled(
    recipe: CurateRecipe, rows: "Dataset", begin: int, lot: int
) -> Iterator[tuple[list[list[str]], list[list[int]]]]:
    """Texts and lengths in tokens of the responses to each prompt of a lot, from the row `begin` on."""
    from prism_cli.assembly.policy_samples import at_once, sampled_lots
    from prism_cli.models import load_policy

    assert recipe.from_ is not None, "check refuses a recipe without a run"
    samples, folder = recipe.samples, resolve_model(recipe.from_)[0]
    wanted = [row for row in range(begin, len(rows)) for _ in range(samples)]
    seed = recipe.seed * 1_000_000 + begin * samples
    policy = load_policy(folder)
    sizes = {"max_tokens": recipe.max_response_tokens, "batch_size": recipe.batch_size}
    engine = chosen_engine(recipe, policy)
    together = max(lot, at_once(engine) // samples if engine.engine == "vllm" else 0) * samples
    with sampler(engine, policy, folder, **sizes) as sample:
        for responses in sampled_lots(sample, rows, wanted, together, temperature=recipe.temperature, seed=seed):
            by_prompt = [responses[start : start + samples] for start in range(0, len(responses), samples)]
            yield (
                [[response.text for response in of_prompt] for of_prompt in by_prompt],
                [[len(response.token_ids) for response in of_prompt] for of_prompt in by_prompt],
            )


def _texts_of(rows: "Dataset") -> Iterator[dict[str, Any]]:
    """Rows without their pictures, which need not be decoded for this."""
    yield from rows.select_columns(["id", "prompt", "answers"])  # pyright: ignore[reportReturnType]


def _verdicts(
    grammar: Grammar, row: dict[str, Any], texts: Sequence[str], lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """Each response with what is found of it, under the names of `prism eval`."""
    found = []
    for text, length in zip(texts, lengths, strict=True):
        response = grammar.parse(text)
        right = response.answer is not None and is_correct(
            response.answer, row["answers"], row["prompt"][-1]["content"]
        )
        found.append(
            {"text": text, "accuracy": float(right), "well_formed": float(response.well_formed), "length": length}
        )
    return found


def _rate(line: dict[str, Any]) -> Rate:
    samples = line["samples"]
    right = sum(sample["accuracy"] == 1 for sample in samples)
    return Rate(line["id"], right, sum(sample["well_formed"] == 0 for sample in samples))


def _kept(path: Path, lot: int, total: int) -> list[Rate]:
    """What earlier starts finished; of a lot that a kill left half-written nothing stays."""
    if not path.exists():
        return []
    rates: list[Rate] = []
    whole = kept = size = 0
    with open(path, "rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            rates.append(_rate(json.loads(line)))
            size += len(line)
            if len(rates) % lot == 0 or len(rates) == total:
                whole, kept = size, len(rates)
        file.truncate(whole)
    return rates[:kept]
