"""`prism eval`: how good, and how far from the teacher, one or several runs are on the same questions."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich import get_console

from prism_cli.errors import RecipeError
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.runs import read_manifest, resolve_model, write_atomically
from prism_cli.stages import attribution, benchmarks, build, checks
from prism_cli.stages.checks import Plan
from prism_cli.stages.connections import UNNAMED, shown_endpoint
from prism_cli.stages.eval_samples import answer_questions, teacher_texts
from prism_cli.stages.eval_summary import SUMMARY, read_samples, show, summed_up
from prism_cli.stages.generation import check_generation
from prism_cli.stages.grammar import grammar_ahead

__all__ = ["check", "read_samples", "run", "run_names"]

# More runs may come to an evaluation, and more samples.
GROWING = ("runs", "samples")


def check(recipe: EvalRecipe, pending: bool = False) -> Plan:
    """What would be done; finds what is wrong without a model.

    Args:
        recipe: The resolved recipe.
        pending: The runs are earlier steps of the same pipeline and need not exist yet.

    Raises:
        PrismError: see the `check_…` functions.
    """
    if not recipe.runs:
        raise RecipeError("`prism eval` has no run to evaluate", "name one or more: prism eval runs/sft runs/align")
    if not pending:
        run_names(recipe.runs)
    plan = [("evaluates", reference) for reference in recipe.runs]
    plan += check_generation(recipe)
    if recipe.data is not None or recipe.benchmarks is None:
        plan += _check_own_questions(recipe)
    if recipe.benchmarks is not None:
        plan += benchmarks.check(recipe.benchmarks)
    return plan


def run(recipe: EvalRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the evaluation; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    if recipe.benchmarks is not None:
        benchmarks.refuse_if_missing()
    source = {"runs": [resolve_model(reference)[1] for reference in recipe.runs]}
    run = build.open_stage(recipe, "eval", source, fresh, command, growing=GROWING)
    if not build.already_done(run):
        with run.working():
            names = run_names(recipe.runs, run.manifest.get("names", {}))
            run.update(names={_place(reference): name for name, reference in names.items()})
            for name, reference in names.items():
                if recipe.data is not None:
                    answer_questions(recipe, name, reference, run)
                    if recipe.attribution is not None and not attribution.complete(recipe, name, run.folder):
                        attribution.attribute(recipe, name, reference, run, partial(teacher_texts, recipe, run))
            if recipe.benchmarks is not None:
                benchmarks.measure(recipe, names, run)
            summary = summed_up(recipe, names, run)
            write_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2))
    show(json.loads((run.folder / SUMMARY).read_text(encoding="utf-8")), get_console())
    return run.folder


def run_names(references: Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Run id → reference; an id that two runs share is written with its run's name, or else with its whole path.

    Args:
        references: Runs, or `RUN@step`.
        known: Place of a run → the name it goes by already.
    """
    known = known or {}
    manifests = [read_manifest(Path(resolve_model(reference)[1]["run"])) for reference in references]
    checkpoints = [resolve_model(reference)[1]["checkpoint"] for reference in references]
    marks = ["" if checkpoint is None else f"@{checkpoint}" for checkpoint in checkpoints]
    ids = [manifest["id"] + mark for manifest, mark in zip(manifests, marks, strict=True)]
    longer = [
        f"{manifest['name']}-{id}" if ids.count(id) > 1 else id for manifest, id in zip(manifests, ids, strict=True)
    ]
    named = []
    for at, reference in enumerate(references):
        path = "-".join(part for part in Path(reference.partition("@")[0]).parts if part not in ("/", ".."))
        own = longer[at] if longer.count(longer[at]) == 1 else f"{path}{marks[at]}"
        named.append(known.get(_place(reference), own))
    if repeated := {name for name in named if named.count(name) > 1}:
        raise RecipeError(f"runs are named alike: {', '.join(sorted(repeated))}", "name each run once")
    return dict(zip(named, references, strict=True))


def _place(reference: str) -> str:
    source = resolve_model(reference)[1]
    return f"{source['run']}@{source['checkpoint'] or ''}"


def _check_own_questions(recipe: EvalRecipe) -> Plan:
    """Raises PrismError where nothing would be generated, or rows, teacher or attribution don't fit."""
    if not recipe.greedy and not recipe.samples:
        raise RecipeError("greedy is off and samples is 0, so nothing would be generated", "set samples or greedy")
    plan = checks.check_data(recipe.data, "eval")
    if recipe.teacher is not None:
        plan += checks.check_teacher(recipe.teacher, "eval", grammar_ahead(recipe))
    if recipe.judge is not None:
        who = f"{recipe.judge.model or UNNAMED} at {shown_endpoint(recipe.judge)}, key from ${recipe.judge.api_key_env}"
        plan.append(("judge", f"{who}; asked where the rules find free text wrong"))
    if recipe.attribution is not None:
        plan += _check_attribution(recipe)
    how = f"{recipe.samples} samples at temperature {recipe.temperature}" + (", and greedy" if recipe.greedy else "")
    return [*plan, ("a question", how)]


def _check_attribution(recipe: EvalRecipe) -> Plan:
    """Raises RecipeError where wrong answers can't be attributed."""
    if recipe.attribution == "greedy" and not recipe.greedy:
        raise RecipeError("attribution is of greedy answers and greedy is off", "set greedy=true or attribution=all")
    if (grammar := grammar_ahead(recipe)) is not None:
        attribution.caption_block(grammar)
    return [
        ("attributes", f"{'greedy' if recipe.attribution == 'greedy' else 'all'} wrong answers, each tried 4 times")
    ]
