"""A warm discriminator: the one a recipe names, one warmed up before, or a new one trained on pairs."""

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli import phases, processes
from prism_cli.assembly.discriminator import discriminator_settings
from prism_cli.discriminator.settings import DiscriminatorSettings
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.runs.files import write_atomically
from prism_cli.runs.references import COMPLETE, DISCRIMINATOR

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from datasets import Dataset

    from prism_cli.discriminator.model import Discriminator
    from prism_cli.discriminator.pairs import Pairs
    from prism_cli.discriminator.reader import PartReader
    from prism_cli.evaluation.backend import Backend
    from prism_cli.models import Policy
    from prism_cli.teacher.answers import TeacherAnswers


def warm_discriminator(
    recipe: AlignRecipe,
    policy: "Policy",
    rows: "Dataset",
    teacher: "TeacherAnswers",
    backend: "Backend",
    folder: Path,
) -> "Discriminator":
    """The warm discriminator of an align run: the one its recipe names, the one it warmed up before, or a new one.

    Args:
        recipe: The stage's.
        policy: Whose responses the discriminator learns to tell from the teacher's.
        rows: Prompts for the pairs.
        teacher: Its answers.
        backend: Generates the policy's samples.
        folder: Where the warm-up is kept; complete once its marker stands.
    """
    from prism_cli.assembly.warmup_pairs import PairSampling, read_pairs, sampled_pairs
    from prism_cli.discriminator.build import open_discriminator, refuse_unfit
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.discriminator.reader import PartReader
    from prism_cli.discriminator.saved import model_folder, saved_discriminator

    settings, section = discriminator_settings(recipe), recipe.discriminator.warmup
    path = settings.start.path
    if path is not None and saved_discriminator(model_folder(path)).warm:
        return open_discriminator(path, settings.start, policy, teacher.taught)
    if processes.from_main((folder / COMPLETE).is_file):
        return Discriminator.from_pretrained(folder / DISCRIMINATOR)
    refuse_unfit(settings.start, policy)
    folder.mkdir(parents=True, exist_ok=True)
    reader = PartReader(policy.processor, policy.grammar, teacher.grammar)
    if section.data is not None:
        pairs = read_pairs(settings.warmup, section.data, policy, reader, recipe.max_prompt_tokens)
    else:
        # No more together than in training, so that what fits there fits here.
        together = max(recipe.micro_batch, recipe.rollouts)
        sampling = PairSampling(
            backend, recipe.max_response_tokens, together, section.temperature, folder / "samples.jsonl"
        )
        pairs = sampled_pairs(settings.warmup, sampling, policy, rows, teacher, reader)
    teacher.prefetch(_first_questions(recipe, rows))  # so that the teacher goes on while the discriminator is trained
    return train_discriminator(settings, policy, pairs, reader, folder)


def _first_questions(recipe: AlignRecipe, rows: "Dataset") -> list[dict[str, str]]:
    """The rows that adversarial training asks about first."""
    from prism_cli.trainers.prompts import first_prompts

    steps = recipe.max_steps or math.ceil(recipe.epochs * (len(rows) // recipe.prompts_per_step))
    ids = rows["id"]
    return [{"id": ids[i]} for i in first_prompts(len(rows), recipe.prompts_per_step, recipe.seed, steps)]


def train_discriminator(
    settings: DiscriminatorSettings, policy: "Policy", pairs: "Pairs", reader: "PartReader", folder: Path
) -> "Discriminator":
    """A discriminator trained on pairs; it stays in the folder, with the account of it as the marker of completeness.

    Args:
        settings: Where it comes from and how it is trained.
        policy: Gives it its body where the settings name none.
        pairs: Of teacher and policy.
        reader: Encodes their prompts, and names the parts.
        folder: Of the warm-up.
    """
    import torch

    from prism_cli.discriminator.build import discriminator_for
    from prism_cli.discriminator.warmup import CHECKPOINTS, warm_up

    # From here on nothing depends on what ran before, so a warm-up that was killed ends the same when run again.
    torch.manual_seed(settings.warmup.seed)
    cold = discriminator_for(settings.start, policy, tuple(reader.taught.parts))
    with phases.within(phases.WARM_UP):
        warm, account = warm_up(cold, settings.warmup, pairs, reader, folder)
    processes.from_main(lambda: write_atomically(folder / COMPLETE, json.dumps(account._asdict())))
    if processes.is_main():
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return warm
