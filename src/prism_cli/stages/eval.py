"""`prism eval`: how good, and how far from the teacher, one or several runs are on the same questions."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich import get_console

from prism_cli.assembly import checks
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.endpoint import UNNAMED, shown_endpoint
from prism_cli.assembly.generation import check_generation
from prism_cli.assembly.response import grammar_ahead
from prism_cli.assembly.run_folder import run_names, run_place, stage_run
from prism_cli.errors import RecipeError
from prism_cli.recipes.identity import differences
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import resolve_model
from prism_cli.stages import eval_attribution, eval_benchmarks
from prism_cli.stages.eval_samples import answer_questions, teacher_texts
from prism_cli.stages.eval_summary import SUMMARY, read_samples, show, summed_up

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
        plan += eval_benchmarks.check(recipe.benchmarks)
    return plan


def run(recipe: EvalRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the evaluation; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    if recipe.benchmarks is not None:
        eval_benchmarks.refuse_if_missing()
    source = {"runs": [resolve_model(reference)[1] for reference in recipe.runs]}
    with stage_run("eval", recipe, source, fresh, command, partial(differences, growing=GROWING)) as run:
        if not run.finished:
            names = run_names(recipe.runs, run.manifest.get("names", {}))
            run.update(names={run_place(reference): name for name, reference in names.items()})
            for name, reference in names.items():
                if recipe.data is not None:
                    answer_questions(recipe, name, reference, run)
                    if recipe.attribution is not None and not eval_attribution.complete(recipe, name, run.folder):
                        eval_attribution.attribute(recipe, name, reference, run, partial(teacher_texts, recipe, run))
            if recipe.benchmarks is not None:
                eval_benchmarks.measure(recipe, names, run)
            summary = summed_up(recipe, names, run)
            write_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2))
    show(json.loads((run.folder / SUMMARY).read_text(encoding="utf-8")), get_console())
    return run.folder


def _check_own_questions(recipe: EvalRecipe) -> Plan:
    """Raises PrismError where nothing would be generated, or rows, teacher or attribution don't fit."""
    if not recipe.greedy and not recipe.samples:
        raise RecipeError("greedy is off and samples is 0, so nothing would be generated", "set samples or greedy")
    plan = checks.check_data(recipe.data, "eval")
    if recipe.teacher is not None:
        plan += checks.check_teacher(recipe.teacher, "eval", grammar_ahead(recipe))
    if (llm_judge := recipe.llm_judge) is not None:
        who = f"{llm_judge.model or UNNAMED} at {shown_endpoint(llm_judge)}, key from ${llm_judge.api_key_env}"
        plan.append(("LLM judge", f"{who}; asked where the rules find free text wrong"))
    if recipe.attribution is not None:
        plan += _check_attribution(recipe)
    how = f"{recipe.samples} samples at temperature {recipe.temperature}" + (", and greedy" if recipe.greedy else "")
    return [*plan, ("a question", how)]


def _check_attribution(recipe: EvalRecipe) -> Plan:
    """Raises RecipeError where wrong answers can't be attributed."""
    if recipe.attribution == "greedy" and not recipe.greedy:
        raise RecipeError("attribution is of greedy answers and greedy is off", "set greedy=true or attribution=all")
    if (grammar := grammar_ahead(recipe)) is not None:
        eval_attribution.caption_block(grammar)
    return [
        ("attributes", f"{'greedy' if recipe.attribution == 'greedy' else 'all'} wrong answers, each tried 4 times")
    ]
