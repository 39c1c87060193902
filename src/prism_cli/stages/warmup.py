"""`prism discriminator warmup`: a discriminator trained on pairs of teacher and policy, for later align runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli.assembly import checks
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.discriminator import check_discriminator, discriminator_settings, questions_of_warmup
from prism_cli.assembly.out_of_memory import training_run
from prism_cli.assembly.planned_alignment import warmup_job
from prism_cli.assembly.policy import start_policy
from prism_cli.assembly.response import grammar_ahead
from prism_cli.assembly.warmup import train_discriminator
from prism_cli.errors import RecipeError
from prism_cli.evaluation.backend import TRANSFORMERS
from prism_cli.progress import say
from prism_cli.recipes.sections import Data, FileData
from prism_cli.recipes.stages import WarmupRecipe
from prism_cli.recipes.teachers import Teacher
from prism_cli.runs.folder import Run
from prism_cli.runs.references import DISCRIMINATOR

if TYPE_CHECKING:  # it imports torch
    from prism_cli.models import Policy


def check(recipe: WarmupRecipe, pending: bool = False) -> Plan:
    """Plan of the stage; finds mistakes without loading a model.

    Args:
        recipe: The resolved recipe.
        pending: The run in `from` need not exist yet.

    Raises:
        PrismError: see the `check_…` functions; no pairs and nothing to sample them from.
    """
    warmup = recipe.discriminator.warmup
    plan = checks.check_start(recipe, "discriminator warmup", pending)
    if warmup.data is not None:
        plan += checks.check_data(warmup.data, "discriminator warmup", "discriminator.warmup.data")
    else:
        data, teacher = _pair_sources(recipe)
        plan += checks.check_data(data, "discriminator warmup")
        plan += checks.check_teacher(teacher, "align", grammar_ahead(recipe))
    length = f"{warmup.pairs} pairs at most, {warmup.batch_size} a step, {warmup.held_out} held out"
    if warmup.stop_in is not None:
        low, high = warmup.stop_in
        length += f", until every part is told apart {low:g} to {high:g} of the time"
    return [*plan, ("discriminator", check_discriminator(recipe)), ("training", length)]


def _pair_sources(recipe: WarmupRecipe) -> tuple[Data, Teacher]:
    """The prompts and the teacher that pairs are made with.

    Raises:
        RecipeError: one of them is missing.
    """
    if recipe.data is None or recipe.teacher is None:
        raise RecipeError(
            "`prism discriminator warmup` has no pairs, and to sample them it lacks "
            + ("prompts" if recipe.data is None else "a teacher"),
            "give --data PAIRS (`prism collect --from RUN` writes such files), or prompts as data.path=FILE and "
            "--teacher-endpoint URL",
        )
    return recipe.data, recipe.teacher


def run(recipe: WarmupRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder, with the discriminator in `discriminator/`.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    with training_run("warmup", recipe, partial(warmup_job, recipe), fresh, command) as run:
        if run.finished:
            return run.folder
        from prism_cli.discriminator.build import refuse_unfit

        policy = start_policy(recipe)
        refuse_unfit(discriminator_settings(recipe).start, policy)
        if recipe.discriminator.warmup.data is not None:
            _on_pairs_of_file(recipe, policy, recipe.discriminator.warmup.data, run.folder)
        else:
            _on_new_pairs(recipe, policy, run)
    say(f"next     prism align … discriminator.path={run.folder / DISCRIMINATOR}")
    return run.folder


def _on_pairs_of_file(recipe: WarmupRecipe, policy: "Policy", data: FileData, folder: Path) -> None:
    from prism_cli.assembly.warmup_pairs import read_pairs
    from prism_cli.discriminator.reader import PartReader

    settings, reader = discriminator_settings(recipe), PartReader(policy.processor, policy.grammar)
    pairs = read_pairs(settings.warmup, data, policy, reader, recipe.max_prompt_tokens)
    train_discriminator(settings, policy, pairs, reader, folder)


def _on_new_pairs(recipe: WarmupRecipe, policy: "Policy", run: Run) -> None:
    from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, resolve_teacher
    from prism_cli.assembly.warmup_pairs import PairSampling, sampled_pairs
    from prism_cli.data.lengths import refuse_over_long
    from prism_cli.discriminator.reader import PartReader
    from prism_cli.teacher.teacher import RecordedTeacher

    settings, (data, section) = discriminator_settings(recipe), _pair_sources(recipe)
    named = resolve_teacher(section)
    rows = load_data(data, policy.settings, "align", isinstance(named, RecordedTeacher))
    refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
    sampling = PairSampling(
        *(TRANSFORMERS, recipe.max_response_tokens, recipe.batch_size, recipe.discriminator.warmup.temperature),
        run.folder / "samples.jsonl",
    )
    questions = TeacherQuestions((rows,), policy.settings, data, questions_of_warmup(recipe))
    with open_teacher(named, run, questions) as teacher:
        reader = PartReader(policy.processor, policy.grammar, teacher.grammar)
        pairs = sampled_pairs(settings.warmup, sampling, policy, rows, teacher, reader)
        train_discriminator(settings, policy, pairs, reader, run.folder)
