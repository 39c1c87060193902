"""The judge before the game: `prism discriminator warmup`, and the same for an align run whose judge is not warm."""

from collections.abc import Sequence
from pathlib import Path

from prism_cli.assembly import checks
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.judge_folder import check_discriminator
from prism_cli.assembly.policy import start_policy
from prism_cli.assembly.response import grammar_ahead
from prism_cli.assembly.teacher_plan import questions_at_most
from prism_cli.assembly.warmup import _warm_up
from prism_cli.errors import RecipeError
from prism_cli.progress import say
from prism_cli.recipes.stages import WarmupRecipe
from prism_cli.recipes.teachers import DatasetTeacher
from prism_cli.runs.references import DISCRIMINATOR


def check(recipe: WarmupRecipe, pending: bool = False) -> Plan:
    """What would be done; finds what is wrong without a model.

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
    elif recipe.data is None or recipe.teacher is None:
        raise RecipeError(
            "`prism discriminator warmup` has no pairs, and to sample them it lacks "
            + ("prompts" if recipe.data is None else "a teacher"),
            "give --data PAIRS (`prism collect --from RUN` writes such files), or prompts as data.path=FILE and "
            "--teacher-endpoint URL",
        )
    else:
        plan += checks.check_data(recipe.data, "discriminator warmup")
        plan += checks.check_teacher(recipe.teacher, "align", grammar_ahead(recipe))
    length = f"{warmup.pairs} pairs at most, {warmup.batch_size} a step, {warmup.held_out} held out"
    if warmup.stop_in is not None:
        low, high = warmup.stop_in
        length += f", until every part is told apart {low:g} to {high:g} of the time"
    return [*plan, ("discriminator", check_discriminator(recipe.discriminator)), ("training", length)]


def run(recipe: WarmupRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder, with the judge in `discriminator/`.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    from prism_cli.assembly.out_of_memory import training_run

    with training_run("warmup", recipe, fresh, command) as run:
        if run.finished:
            return run.folder
        from prism_cli.assembly.discriminator import refuse_unfit
        from prism_cli.assembly.teacher import open_teacher
        from prism_cli.data.lengths import refuse_over_long

        policy = start_policy(recipe)
        refuse_unfit(recipe.discriminator, policy)
        if recipe.discriminator.warmup.data is not None:
            _warm_up(recipe, policy, run.folder)
        else:
            assert recipe.teacher is not None, "check refuses to sample pairs without a teacher"
            rows = load_data(recipe.data, policy.settings, "align", isinstance(recipe.teacher, DatasetTeacher))
            refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
            asked = {"instruction": policy.instruction, "data": recipe.data, "at_most": questions_at_most(recipe)}
            with open_teacher(recipe.teacher, policy.grammar, run, rows, **asked) as desk:
                _warm_up(recipe, policy, run.folder, (rows, desk))
    warm = run.folder / DISCRIMINATOR
    say(f"next     prism align … discriminator.path={warm}")
    return run.folder
