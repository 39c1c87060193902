"""A warm discriminator: the one a recipe names, one warmed up before, or a new one trained on pairs."""

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli import processes
from prism_cli.recipes.stages import AlignRecipe, WarmupRecipe
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import COMPLETE, DISCRIMINATOR

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from datasets import Dataset

    from prism_cli.assembly.desk import TeacherAnswers
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.discriminator.reader import PartReader
    from prism_cli.models import Policy


def warm_discriminator(
    recipe: AlignRecipe, policy: "Policy", rows: "Dataset", desk: "TeacherAnswers", folder: Path
) -> "Discriminator":
    """A warm judge: the one the recipe names, the one this run warmed up before, or a new one.

    Args:
        recipe: The stage's recipe.
        policy: Whose responses the judge learns to tell from the teacher's.
        rows: Prompts for the pairs.
        desk: The teacher.
        folder: Where the warm-up is kept; complete once its marker stands.
    """
    from prism_cli.assembly import discriminator
    from prism_cli.discriminator.model import Discriminator

    section = recipe.discriminator
    if section.path is not None and discriminator.is_warm(section.path):
        return discriminator.open_discriminator(section, policy, desk.taught)
    if processes.from_main((folder / COMPLETE).is_file):
        return Discriminator.from_pretrained(folder / DISCRIMINATOR)
    discriminator.refuse_unfit(section, policy)
    folder.mkdir(parents=True, exist_ok=True)
    return _warm_up(recipe, policy, folder, (rows, desk))


def _warm_up(
    recipe: AlignRecipe | WarmupRecipe,
    policy: "Policy",
    folder: Path,
    asked: "tuple[Dataset, TeacherAnswers] | None" = None,
) -> "Discriminator":
    """A judge trained on the pairs a recipe names, else on pairs of the rows and the teacher in `asked`."""
    from prism_cli.assembly.warmup_pairs import read_pairs, sampled_pairs
    from prism_cli.discriminator.reader import PartReader

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

    from prism_cli.assembly import discriminator, warming

    # From here on nothing depends on what ran before, so a warm-up that was killed ends the same when run again.
    torch.manual_seed(recipe.seed)
    parts = tuple(reader.taught.parts)
    make = discriminator.build_discriminator if recipe.discriminator.path is None else _opened
    cold = make(recipe, policy, parts)
    warm, account = warming.warm(recipe, cold, pairs, reader, folder, folder / DISCRIMINATOR)
    processes.from_main(lambda: write_atomically(folder / COMPLETE, json.dumps(account)))
    if processes.is_main():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return warm


def _opened(recipe: AlignRecipe | WarmupRecipe, policy: "Policy", parts: tuple[str, ...]) -> "Discriminator":
    from prism_cli.assembly.discriminator import open_discriminator

    return open_discriminator(recipe.discriminator, policy, parts)


def _first_asked(recipe: AlignRecipe, rows: "Dataset") -> list[dict[str, str]]:
    """The prompts the game will ask about first."""
    from prism_cli.trainers.prompts import first_prompts

    steps = recipe.max_steps or math.ceil(recipe.epochs * (len(rows) // recipe.prompts_per_step))
    ids = rows["id"]
    return [{"id": ids[i]} for i in first_prompts(len(rows), recipe.prompts_per_step, recipe.seed, steps)]
