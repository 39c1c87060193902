"""`prism collect`: demonstrations distilled from a teacher, or pairs to warm a discriminator up on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.assembly import checks
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data, resolve_data
from prism_cli.assembly.endpoint import OpenEndpoint
from prism_cli.assembly.generation import sampler
from prism_cli.assembly.response import grammar_ahead, response_settings
from prism_cli.assembly.run_folder import stage_run
from prism_cli.assembly.teacher import TeacherQuestions, open_live_teacher, resolve_live
from prism_cli.endpoint.batches.client import BatchAsker
from prism_cli.endpoint.batches.ledger import under_way
from prism_cli.endpoint.batches.terms import at_batch_price
from prism_cli.errors import CheckpointError, PrismError, RecipeError
from prism_cli.evaluation.backend import TRANSFORMERS
from prism_cli.progress import say
from prism_cli.publishing.dataset_card import Collection, collection_card
from prism_cli.recipes.identity import run_folder, to_dict
from prism_cli.recipes.stages import CollectRecipe
from prism_cli.responses import ResponseSettings
from prism_cli.rewards.accuracy import is_correct
from prism_cli.runs.files import write_atomically
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model
from prism_cli.teacher.answers import TeacherAnswers
from prism_cli.teacher.bulk import (
    Answer,
    BatchAnswers,
    BulkAnswers,
    DirectAnswers,
    Stopped,
    collect_under_way,
    useless,
)
from prism_cli.teacher.tally import REJECTED, Collected, Tally

if TYPE_CHECKING:
    from datasets import Dataset

DATA, DEMONSTRATIONS, PAIRS = "data", "demonstrations.parquet", "pairs.jsonl"
SUMMARY, BATCHES = "summary.json", "batches"
# Of the policy's responses: as many as align's default rollouts, so that what it fits on fits here.
GENERATED_AT_ONCE = 16


def check(recipe: CollectRecipe, pending: bool = False) -> Plan:
    """Plan of the stage; finds mistakes without loading a model.

    Args:
        recipe: The resolved recipe.
        pending: The run in `from` need not exist yet.

    Raises:
        PrismError: see the `check_…` functions; a teacher that can't write what is collected.
    """
    plan = []
    if recipe.from_ is not None:
        plan = [("policy", recipe.from_ if pending else str(resolve_model(recipe.from_)[0]))]
    plan += checks.check_data(recipe.data, "collect")
    plan += checks.check_teacher(recipe.teacher, "collect", grammar_ahead(recipe))
    if recipe.batch and resolve_live(recipe.teacher).serve is not None:
        raise RecipeError("batch is set, but the embedded teacher answers at once and for nothing", "set batch=false")
    what = "pairs of teacher and policy" if recipe.from_ else "demonstrations"
    kept = "well-formed ones" if recipe.from_ or recipe.keep == "well_formed" else "well-formed and right ones"
    way = ", through the batch endpoint" if recipe.batch else ""
    return [*plan, ("collects", f"{what}, {recipe.samples} a prompt{way}; keeps the {kept}")]


def run(recipe: CollectRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    if fresh:
        _refuse_to_forget(run_folder("collect", recipe))
    source = resolve_model(recipe.from_)[1] if recipe.from_ else None
    with stage_run("collect", recipe, source, fresh, command) as run:
        if run.finished:
            return run.folder
        settings = response_settings(recipe)
        rows = load_data(recipe.data, settings)
        collected, stopped = _collect(recipe, run, settings, rows)
        if stopped is not None:
            _say_stopped(collected, stopped)
            raise stopped
    _say(collected, recipe)
    return run.folder


def _refuse_to_forget(folder: Path) -> None:
    """Keeps --fresh from deleting the notes of batches that are paid for."""
    if batches := under_way(folder / BATCHES):
        raise CheckpointError(
            f"{folder} has batches under way ({', '.join(batches)}), and --fresh would pay for them again",
            "collect them first with the command that submitted them, without --fresh: what they bring is kept over "
            f"it; to give them up, delete {folder / BATCHES}",
        )


def _collect(
    recipe: CollectRecipe, run: Run, settings: ResponseSettings, rows: "Dataset"
) -> tuple[Collected, Stopped | None]:
    """Asks and writes; why it ended early or in vain, if it did."""
    # What the teacher fails on is rejected, which is no reason to end before all is asked.
    teacher = replace(resolve_live(recipe.teacher), max_failed=1.0)
    questions = TeacherQuestions((rows,), settings, recipe.data, samples=recipe.samples)
    write, notes = _pairs if recipe.from_ else _demonstrations, run.folder / BATCHES
    with open_live_teacher(teacher, run, questions, recipe.batch) as (by_row, opened):
        kept = opened.kept(by_row.problem)
        if recipe.batch:
            answers: BulkAnswers = BatchAnswers(by_row, kept, _asker(opened, by_row, notes), recipe.samples)
        else:
            if under_way(notes):
                collect_under_way(_asker(opened, by_row, notes))
            answers = DirectAnswers(by_row, kept, recipe.samples)
        collected, stopped = write(recipe, run, settings, rows, answers), answers.stopped
    _write_account(recipe, run, collected, by_row.source.name, complete=stopped is None)
    if stopped is None and collected.answers == collected.failed > 0:
        stopped = useless(collected.answers, by_row)
    return collected, stopped


def _asker(opened: OpenEndpoint, by_row: TeacherAnswers, notes: Path) -> BatchAsker:
    return BatchAsker(opened.client(by_row.problem), at_batch_price(opened.endpoint), notes)


def _demonstrations(
    recipe: CollectRecipe, run: Run, settings: ResponseSettings, rows: "Dataset", answers: BulkAnswers
) -> Collected:
    """Writes the answers worth learning."""
    from prism_cli.data.collected import DemonstrationsFile
    from prism_cli.data.rows import undecoded, without_instruction

    path = run.folder / DATA / DEMONSTRATIONS
    tally = Tally(run.folder / REJECTED)
    with tally, DemonstrationsFile(path) as file:
        for row, given in answers.of(undecoded(rows)):
            seen: set[str] = set()
            for answer in given:
                reason = answer.problem or _unfit(recipe, settings, row, answer, seen)
                if tally.is_kept(answer, reason, verified=bool(row["answers"])):
                    seen.add(answer.text)
                    file.add(answer.row_id, without_instruction(row, settings.instruction), answer.text)
    return tally.collected(path)


def _unfit(
    recipe: CollectRecipe, settings: ResponseSettings, row: dict[str, Any], answer: Answer, seen: set[str]
) -> str | None:
    """Why an answer is no demonstration, or None."""
    response = settings.grammar.parse(answer.text)
    if not response.well_formed:
        return f"malformed: {response.problem}"
    right = recipe.keep == "well_formed" or not row["answers"]
    if not right and not is_correct(response.answer or "", row["answers"], row["prompt"][-1]["content"]):
        return f"wrong: {' '.join((response.answer or '').split())[:100]!r}"
    return "duplicate: an earlier answer to this prompt says the same" if answer.text in seen else None


def _pairs(
    recipe: CollectRecipe, run: Run, settings: ResponseSettings, rows: "Dataset", answers: BulkAnswers
) -> Collected:
    """Writes teacher answers beside the policy's own; right or wrong, since it is the manner that is compared."""
    from prism_cli.data.collected import PairsFile, pair_columns
    from prism_cli.data.rows import undecoded, without_instruction

    own = _policy_texts(recipe, run, rows)
    path = run.folder / DATA / PAIRS
    tally = Tally(run.folder / REJECTED)
    with tally, PairsFile(path) as file:
        for row, given in answers.of(undecoded(rows)):
            for answer in given:
                teacher = settings.grammar.parse(answer.text)
                student = settings.grammar.parse(text := own[answer.row, answer.sample])
                reason = answer.problem or _malformed("", teacher.problem) or _malformed("policy ", student.problem)
                if tally.is_kept(answer, reason, verified=True):
                    columns = [pair_columns(*both) for both in ((answer.text, teacher), (text, student))]
                    file.add(answer.row_id, without_instruction(row, settings.instruction), *columns)
    return tally.collected(path)


def _policy_texts(recipe: CollectRecipe, run: Run, rows: "Dataset") -> dict[tuple[str, int], str]:
    """The policy's responses by row id and sample."""
    from prism_cli.evaluation.kept_samples import CHUNK, SamplingPlan, kept_samples
    from prism_cli.models import load_policy

    assert recipe.from_ is not None, "pairs are collected with a run in `from`"
    folder = resolve_model(recipe.from_)[0]
    policy = load_policy(folder)
    wanted = [index for index in range(len(rows)) for _ in range(recipe.samples)]
    sizes = {"max_tokens": recipe.max_response_tokens, "batch_size": GENERATED_AT_ONCE}
    plan = SamplingPlan(recipe.temperature, recipe.seed, CHUNK)
    with sampler(TRANSFORMERS, policy, folder, **sizes) as sample:
        sampled = kept_samples(sample, rows, wanted, plan, run.folder / "samples.jsonl", "sampling the policy")
    texts = [policy.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in sampled]
    return dict(zip(((id, sample) for id in rows["id"] for sample in range(recipe.samples)), texts, strict=True))


def _malformed(whose: str, problem: str | None) -> str | None:
    return f"{whose}malformed: {problem}" if problem else None


def _write_account(recipe: CollectRecipe, run: Run, collected: Collected, model: str, complete: bool) -> None:
    usage = json.loads((run.folder / "teacher.json").read_text(encoding="utf-8"))
    summary = {
        "kind": "pairs" if recipe.from_ else "demonstrations",
        **collected._asdict(),
        "file": str(collected.file.relative_to(run.folder)),
        "complete": complete,
        "teacher": model,
        "usage": usage,
    }
    write_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2))
    card = collection_card(_collection(recipe, model), run.manifest, summary)
    write_atomically(run.folder / DATA / "README.md", card)


def _collection(recipe: CollectRecipe, model: str) -> Collection:
    """Facts of the collection for its card."""
    teacher = resolve_live(recipe.teacher)
    free, way = teacher.serve is not None, " in batches" if recipe.batch else ""
    asked = f"at {teacher.endpoint.url}{way}, temperature {teacher.endpoint.sampling.temperature:g}"
    name = f"{model}, the world's own oracle" if free else f"{model} {asked}"
    return Collection(resolve_data(recipe.data).names, recipe.samples, name, free, recipe.from_, to_dict(recipe))


def _say_stopped(collected: Collected, stopped: Stopped) -> None:
    kept = f"the {collected.kept} kept so far stand in {collected.file}"
    if isinstance(stopped, PrismError):
        stopped.in_section("teacher")
        stopped.add_advice(kept)
    else:
        say(f"{kept}; the same command goes on")


def _say(collected: Collected, recipe: CollectRecipe) -> None:
    for line in collected.describe():
        say(line)
    if recipe.from_ is None and collected.kept:
        say(f"next     prism sft --data {collected.file} …")
