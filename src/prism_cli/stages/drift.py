"""`prism drift`: how far one or several runs are from the teacher, part by part, from texts alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import get_console

from prism_cli.assembly import checks
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import check_sampling, chosen_backend, sampler
from prism_cli.assembly.response import run_grammar, run_settings
from prism_cli.assembly.run_folder import run_names, stage_run
from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, resolve_teacher
from prism_cli.errors import DataError, RecipeError
from prism_cli.recipes.stages import DriftRecipe
from prism_cli.responses import Grammar, ResponseSettings
from prism_cli.runs.files import write_atomically
from prism_cli.runs.folder import Run
from prism_cli.runs.references import read_manifest, resolve_model

RESULT = "drift.json"


def check(recipe: DriftRecipe) -> Plan:
    """The plan of a measurement; refuses what can be seen to be wrong without a model.

    Raises:
        PrismError: see the `check_…` functions.
    """
    if not recipe.runs:
        raise RecipeError("`prism drift` has no run to measure", "name one or more: prism drift runs/sft runs/align")
    run_names(recipe.runs)
    plan = [("measures", reference) for reference in recipe.runs]
    plan += checks.check_data(recipe.data, "drift")
    plan += checks.check_teacher(recipe.teacher, "drift", run_grammar(recipe.runs[0]))
    plan += check_sampling(recipe.generation)
    return [*plan, ("a prompt", f"{recipe.samples} samples at temperature {recipe.temperature}")]


def run(recipe: DriftRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the measurement; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    source = {"runs": [resolve_model(reference)[1] for reference in recipe.runs]}
    with stage_run("drift", recipe, source, fresh, command) as run:
        if not run.finished:
            grammar, answers = _teacher_answers(recipe, run)
            runs = [_measure(recipe, *named, run, grammar, answers) for named in run_names(recipe.runs).items()]
            settings = {"prompts": len(answers), "samples": recipe.samples, "temperature": recipe.temperature}
            result = {"settings": settings, "runs": runs}
            write_atomically(run.folder / RESULT, json.dumps(result, indent=2))
    from prism_cli.report.summary_table import side_by_side, summary_table

    console, result = get_console(), json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
    console.print(side_by_side(summary_table(result), console.width))
    return run.folder


# Teacher -------------------------------------------------------------------------------------------------------------


def _teacher_answers(recipe: DriftRecipe, run: Run) -> tuple[Grammar, list[str | None]]:
    """The parts the teacher writes, and its answer to each row; None where it failed."""
    settings = _settings(recipe.runs)
    rows = load_data(recipe.data, settings)
    questions = TeacherQuestions((rows,), settings, recipe.data)
    with open_teacher(resolve_teacher(recipe.teacher).by_its_store(), run, questions) as answers:
        return answers.grammar, answers.answers([{"id": id} for id in rows["id"]])


def _settings(references: Sequence[str]) -> ResponseSettings:
    """The response settings of the runs' policies.

    Raises:
        RecipeError: they differ in their parts.
    """
    first, *others = map(run_settings, references)
    for reference, settings in zip(references[1:], others, strict=True):
        if settings.grammar != first.grammar:
            raise RecipeError(
                f"{reference} writes other parts than {references[0]}", "measure runs with the same response.parts"
            )
    return first


# Measuring -----------------------------------------------------------------------------------------------------------


def _measure(
    recipe: DriftRecipe, name: str, reference: str, run: Run, taught: Grammar, answers: Sequence[str | None]
) -> dict[str, Any]:
    """A run's line of drift.json: metrics with intervals, and the counts they come from."""
    from prism_cli.evaluation.drift import run_drift

    grammar, texts = _responses(recipe, name, reference, run)
    responses = [[grammar.parse(text) for text in of_prompt] for of_prompt in texts]
    try:
        drift = run_drift(tuple(taught.parts), [taught.parse(text or "") for text in answers], responses, recipe.seed)
    except ValueError as error:
        raise DataError(
            f"{name}: of {len(answers)} prompts too few have a well-formed response and answer: {error}",
            "give more prompts, or a policy and teacher that keep the form",
        ) from None
    source = Path(resolve_model(reference)[1]["run"])
    metrics = {metric: interval._asdict() for metric, interval in drift.metrics.items()}
    place = {"id": name, "path": str(source), "stage": read_manifest(source)["stage"]}
    return {**place, "metrics": metrics, "counts": drift.counts}


def _responses(recipe: DriftRecipe, name: str, reference: str, run: Run) -> tuple[Grammar, list[list[str]]]:
    """The run's grammar, and its responses to each row; kept in the folder chunk by chunk."""
    from prism_cli.evaluation.kept_samples import CHUNK, SamplingPlan, kept_samples
    from prism_cli.models import free_memory, load_policy

    folder = resolve_model(reference)[0]
    policy = load_policy(folder)
    rows = load_data(recipe.data, policy.settings)
    wanted = [row for row in range(len(rows)) for _ in range(recipe.samples)]
    backend = chosen_backend(recipe.generation, policy)
    plan = SamplingPlan(recipe.temperature, recipe.seed, backend.chunk(CHUNK))
    sizes = {"max_tokens": recipe.max_response_tokens, "batch_size": recipe.batch_size}
    path = run.folder / f"responses-{name}.jsonl"
    with sampler(backend, policy, folder, **sizes) as sample:
        sampled = kept_samples(sample, rows, wanted, plan, path, f"drift {name}")
    texts = [policy.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in sampled]
    grammar = policy.grammar
    del policy
    free_memory()
    return grammar, [texts[start : start + recipe.samples] for start in range(0, len(texts), recipe.samples)]
