"""`prism eval`: how good, and how far from the teacher, one or several runs are on the same questions."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich import get_console

from prism_cli.assembly import checks
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import check_sampling, chosen_backend, sampler
from prism_cli.assembly.llm_judge import llm_judge_line
from prism_cli.assembly.response import run_grammar
from prism_cli.assembly.run_folder import run_names, run_place, stage_run
from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, resolve_teacher
from prism_cli.errors import RecipeError
from prism_cli.evaluation.answering import answered, by_question, missing_passes, passes, refuse_other_rows
from prism_cli.evaluation.causes import caption_block
from prism_cli.evaluation.summary import samples_file
from prism_cli.recipes.identity import differences
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.runs.files import read_lines, write_atomically, write_lines
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model
from prism_cli.stages import eval_benchmarks
from prism_cli.stages.eval_attribution import attribute
from prism_cli.stages.eval_summary import SUMMARY, show, summed_up
from prism_cli.stages.eval_verdicts import Questions, add_likelihoods, add_verdicts

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy

QUESTIONS = "questions.jsonl"

# More runs may come to an evaluation, and more samples.
GROWING = ("runs", "samples")


def check(recipe: EvalRecipe, pending: bool = False) -> Plan:
    """The plan of an evaluation; refuses what can be seen to be wrong without a model.

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
    plan += check_sampling(recipe.generation)
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
                    _answer_questions(recipe, name, reference, run)
                    if recipe.attribution is not None:
                        attribute(recipe, name, reference, run, partial(_teacher_texts, recipe, run))
            if recipe.benchmarks is not None:
                eval_benchmarks.measure(recipe, names, run)
            summary = summed_up(recipe, names, run)
            write_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2))
    show(json.loads((run.folder / SUMMARY).read_text(encoding="utf-8")), get_console())
    return run.folder


# Answering -----------------------------------------------------------------------------------------------------------


def _answer_questions(recipe: EvalRecipe, name: str, reference: str, run: Run) -> None:
    """Writes samples-<run>.jsonl, or adds the samples it lacks; continues where it was stopped.

    Responses are kept chunk by chunk in responses-<run>.jsonl until all have their verdicts.

    Args:
        recipe: The evaluation.
        name: The evaluated run's name in it.
        reference: Where that run is.
        run: The evaluation's folder.

    Raises:
        CheckpointError: the data has other rows than were answered.
        PrismError: every request failed, or the teacher or the LLM judge did.
    """
    from prism_cli.models import load_policy

    path, responses = samples_file(run.folder, name), run.folder / f"responses-{name}.jsonl"
    before = read_lines(path)
    wanted = passes(recipe.greedy, recipe.samples, recipe.temperature, recipe.seed)
    if not (missing := missing_passes(wanted, before)):
        return
    folder = resolve_model(reference)[0]
    policy = load_policy(folder)
    rows = load_data(recipe.data, policy.settings)
    if lines := before or next(map(read_lines, run.folder.glob("samples-*.jsonl")), []):
        refuse_other_rows(run.folder, [line["id"] for line in lines], rows["id"])
    # Before hours of sampling, since a cap on the teacher may end it.
    questions = Questions(rows, _teacher_texts(recipe, run, policy, rows))
    backend = chosen_backend(recipe.generation, policy)
    run.update(backends={**run.manifest.get("backends", {}), name: backend.name})
    sizes = {"max_tokens": recipe.max_response_tokens, "batch_size": recipe.batch_size}
    with sampler(backend, policy, folder, **sizes) as sample:
        answers = answered(sample, rows, missing, backend.chunk(recipe.batch_size), responses, f"eval {name}")
    lines = by_question(rows["id"], before, answers, recipe.greedy)
    add_verdicts(recipe, run, policy, questions, lines)
    if questions.taught is not None:
        add_likelihoods(policy, questions, lines, before, recipe.batch_size)
    for outdated in ("attribution", "retries"):  # they number the wrong answers there were
        (run.folder / f"{outdated}-{name}.jsonl").unlink(missing_ok=True)
    write_lines(path, lines)
    _keep_questions(run.folder, questions)
    responses.unlink()


def _teacher_texts(recipe: EvalRecipe, run: Run, policy: "Policy", rows: "Dataset") -> list[str | None] | None:
    """The teacher's answers, None for questions it failed on; None without a teacher."""
    if recipe.teacher is None:
        return None
    questions = TeacherQuestions((rows,), policy.settings, recipe.data)
    with open_teacher(resolve_teacher(recipe.teacher), run, questions) as teacher:
        return teacher.answers([{"id": id} for id in rows["id"]])


def _keep_questions(folder: Path, questions: Questions) -> None:
    """Writes questions.jsonl: those of the questions that the report page shows, with their pictures."""
    from prism_cli.report.gallery import shown_questions
    from prism_cli.trainers.rollout_log import PICTURES, thumbnail

    samples = {path.stem.removeprefix("samples-"): read_lines(path) for path in sorted(folder.glob("samples-*.jsonl"))}
    pictures = lambda row: [thumbnail(image) for image in (row["images"] or ())[:PICTURES]]  # noqa: E731
    write_lines(folder / QUESTIONS, shown_questions(samples, questions.rows, questions.taught, pictures))


# Checking ------------------------------------------------------------------------------------------------------------


def _check_own_questions(recipe: EvalRecipe) -> Plan:
    """Raises PrismError where nothing would be generated, or rows, teacher or attribution don't fit."""
    if not recipe.greedy and not recipe.samples:
        raise RecipeError("greedy is off and samples is 0, so nothing would be generated", "set samples or greedy")
    plan = checks.check_data(recipe.data, "eval")
    if recipe.teacher is not None:
        plan += checks.check_teacher(recipe.teacher, "eval", run_grammar(recipe.runs[0]))
    if recipe.llm_judge is not None:
        plan.append(llm_judge_line(recipe.llm_judge, "llm_judge"))
    if recipe.attribution is not None:
        plan += _check_attribution(recipe)
    how = f"{recipe.samples} samples at temperature {recipe.temperature}" + (", and greedy" if recipe.greedy else "")
    return [*plan, ("a question", how)]


def _check_attribution(recipe: EvalRecipe) -> Plan:
    """Raises RecipeError where wrong answers can't be attributed."""
    if recipe.attribution == "greedy" and not recipe.greedy:
        raise RecipeError("attribution is of greedy answers and greedy is off", "set greedy=true or attribution=all")
    if (grammar := run_grammar(recipe.runs[0])) is not None:
        caption_block(grammar)
    return [
        ("attributes", f"{'greedy' if recipe.attribution == 'greedy' else 'all'} wrong answers, each tried 4 times")
    ]
