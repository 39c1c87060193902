"""The judge before the game: `prism discriminator warmup`, and the same for an align run whose judge is not warm."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import get_console

from prism_cli import processes
from prism_cli.errors import RecipeError
from prism_cli.recipes.stages import AlignRecipe, WarmupRecipe
from prism_cli.recipes.teachers import DatasetTeacher
from prism_cli.runs import COMPLETE, write_atomically
from prism_cli.stages import build, checks
from prism_cli.stages.checks import Plan
from prism_cli.stages.grammar import grammar_ahead
from prism_cli.stages.judge_folder import check_judge
from prism_cli.stages.outlook import questions_at_most

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from datasets import Dataset

    from prism_cli.discriminator.model import Discriminator
    from prism_cli.models import Policy
    from prism_cli.stages.desk import TeacherDesk
    from prism_cli.trainers.on_policy_distill import PartReader

DISCRIMINATOR = "discriminator"


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
    return [*plan, ("discriminator", check_judge(recipe.discriminator)), ("training", length)]


def run(recipe: WarmupRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder, with the judge in `discriminator/`.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    run = build.open_stage(recipe, "warmup", build.lineage(recipe), fresh, command)
    if build.already_done(run):
        return run.folder
    from prism_cli.data.lengths import refuse_over_long
    from prism_cli.stages.judge import refuse_unfit
    from prism_cli.stages.memory import fitting
    from prism_cli.stages.teaching import teaching

    with run.working(), fitting("warmup", recipe):
        policy = build.start_policy(recipe)
        refuse_unfit(recipe.discriminator, policy)
        if recipe.discriminator.warmup.data is not None:
            _warm_up(recipe, policy, run.folder)
        else:
            assert recipe.teacher is not None, "check refuses to sample pairs without a teacher"
            rows = build.load_data(recipe.data, policy, "align", isinstance(recipe.teacher, DatasetTeacher))
            refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
            asked = {"instruction": policy.instruction, "data": recipe.data, "at_most": questions_at_most(recipe)}
            with teaching(recipe.teacher, policy.grammar, run, rows, **asked) as desk:
                _warm_up(recipe, policy, run.folder, (rows, desk))
    warm = run.folder / DISCRIMINATOR
    get_console().print(f"next     prism align … discriminator.path={warm}", markup=False, highlight=False)
    return run.folder


def warm_discriminator(
    recipe: AlignRecipe, policy: "Policy", rows: "Dataset", desk: "TeacherDesk", folder: Path
) -> "Discriminator":
    """A warm judge: the one the recipe names, the one this run warmed up before, or a new one.

    Args:
        recipe: The stage's recipe.
        policy: Whose responses the judge learns to tell from the teacher's.
        rows: Prompts for the pairs.
        desk: The teacher.
        folder: Where the warm-up is kept; complete once its marker stands.
    """
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.stages import judge

    section = recipe.discriminator
    if section.path is not None and judge.is_warm(section.path):
        return judge.open_judge(section, policy, desk.taught)
    if processes.from_main((folder / COMPLETE).is_file):
        return Discriminator.from_pretrained(folder / DISCRIMINATOR)
    judge.refuse_unfit(section, policy)
    folder.mkdir(parents=True, exist_ok=True)
    return _warm_up(recipe, policy, folder, (rows, desk))


def _warm_up(
    recipe: AlignRecipe | WarmupRecipe,
    policy: "Policy",
    folder: Path,
    asked: "tuple[Dataset, TeacherDesk] | None" = None,
) -> "Discriminator":
    """A judge trained on the pairs a recipe names, else on pairs of the rows and the teacher in `asked`."""
    from prism_cli.stages.pairs import read_pairs, sampled_pairs
    from prism_cli.trainers.on_policy_distill import PartReader

    reader = PartReader(policy.processor, policy.grammar, asked[1].grammar if asked else None)
    if recipe.discriminator.warmup.data is not None:
        pairs = read_pairs(recipe, policy, reader)
    else:
        assert asked is not None, "without a file of pairs there are prompts and a teacher"
        pairs = sampled_pairs(recipe, policy, *asked, reader, folder / "samples.jsonl")
    if isinstance(recipe, AlignRecipe) and asked is not None:
        rows, desk = asked
        desk.prefetch(_first_asked(recipe, rows))  # so that the teacher goes on while the judge is trained
    return _train(recipe, policy, pairs, reader, folder)


def _train(recipe: AlignRecipe | WarmupRecipe, policy: "Policy", pairs, reader: "PartReader", folder: Path):
    """Trains a judge and leaves it in the folder, with the account of it as the marker that it is complete."""
    import torch

    from prism_cli.stages import judge, warming

    # From here on nothing depends on what ran before, so a warm-up that was killed ends the same when run again.
    torch.manual_seed(recipe.seed)
    parts = tuple(reader.taught.parts)
    make = judge.build_judge if recipe.discriminator.path is None else _opened
    cold = make(recipe, policy, parts)
    warm, account = warming.warm(recipe, cold, pairs, reader, folder, folder / DISCRIMINATOR)
    processes.from_main(lambda: write_atomically(folder / COMPLETE, json.dumps(account)))
    if processes.is_main():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return warm


def _opened(recipe: AlignRecipe | WarmupRecipe, policy: "Policy", parts: tuple[str, ...]) -> "Discriminator":
    from prism_cli.stages.judge import open_judge

    return open_judge(recipe.discriminator, policy, parts)


def _first_asked(recipe: AlignRecipe, rows: "Dataset") -> list[dict[str, str]]:
    """The prompts the game will ask about first."""
    from prism_cli.trainers.prompts import first_prompts

    steps = recipe.max_steps or math.ceil(recipe.epochs * (len(rows) // recipe.prompts_per_step))
    ids = rows["id"]
    return [{"id": ids[i]} for i in first_prompts(len(rows), recipe.prompts_per_step, recipe.seed, steps)]
