"""The discriminator before the game: built from the starting policy, or loaded, and trained on teacher/policy pairs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.upcycle import dense_body, upcycle
from prism_cli.evaluation.sampling import multimodal, sample_responses
from prism_cli.models import Policy, placeholder_ids
from prism_cli.recipes.sections import MoEDiscriminator
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.runs import COMPLETE, write_atomically
from prism_cli.stages.build import TeacherDesk, progress_callback
from prism_cli.trainers.on_policy_distill import PartReader

if TYPE_CHECKING:
    from datasets import Dataset

# Published value; the game itself has none unless the recipe sets one.
WARMUP_BALANCE = 0.01


def warm_discriminator(
    recipe: AlignRecipe, policy: Policy, rows: "Dataset", desk: TeacherDesk, folder: Path
) -> Discriminator:
    """A warm discriminator: the one the recipe names, the one this run warmed up before, or a new one.

    Args:
        recipe: The stage's recipe.
        policy: Whose responses the judge learns to tell from the teacher's; also what a new judge is built from.
        rows: Prompts for the pairs.
        desk: The teacher.
        folder: Where the warm-up is kept; complete once its marker stands.
    """
    if recipe.discriminator.path is not None:
        return Discriminator.from_pretrained(recipe.discriminator.path)
    if (folder / COMPLETE).is_file():
        return Discriminator.from_pretrained(folder / "discriminator")
    # From here on nothing depends on what ran before, so a warm-up that was killed ends the same when run again.
    torch.manual_seed(recipe.seed)
    discriminator = build_discriminator(recipe, policy)
    train, held_out = _pairs(recipe, policy, rows, desk)
    metrics = _train(recipe, discriminator, train, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    discriminator.save_pretrained(folder / "discriminator")
    write_atomically(folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in metrics))
    write_atomically(folder / COMPLETE, json.dumps({"pairs": len(train.rollouts)}))
    return discriminator


def build_discriminator(recipe: AlignRecipe, policy: Policy) -> Discriminator:
    """A cold discriminator of the recipe's type, made from the policy's body."""
    section = recipe.discriminator
    if isinstance(section, MoEDiscriminator):
        body: Any = upcycle(
            policy.model, section.experts, section.top_k, section.noise, section.noise_scale, seed=recipe.seed
        )
    else:
        body = dense_body(policy.model)
    tokenizer = policy.processor.tokenizer
    return Discriminator(
        body,
        parts=tuple(policy.grammar.parts),
        readout_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        kind=section.type,
        readout=section.readout,
        dropout=section.dropout,
        head_std=section.head_std,
    )


def learner_for(section: Any, discriminator: Discriminator, **schedule: Any) -> DiscriminatorLearner:
    """The learner of the game, or of the warm-up when its schedule is given."""
    options = {
        "learning_rate": section.learning_rate,
        "balance": section.balance if isinstance(section, MoEDiscriminator) else 0.0,
        **schedule,
    }
    return DiscriminatorLearner(
        discriminator,
        weight_decay=section.weight_decay,
        score_clip=section.score_clip,
        score_penalty=section.score_penalty,
        max_grad_norm=section.max_grad_norm,
        micro_batch=section.micro_batch,
        **options,
    )


def _pairs(
    recipe: AlignRecipe, policy: Policy, rows: "Dataset", desk: TeacherDesk
) -> tuple[Comparisons, Comparisons]:
    """Training and held-out pairs: the policy's samples beside the teacher's answers, malformed samples left out."""
    wanted = recipe.discriminator.warmup.pairs + recipe.discriminator.warmup.held_out
    chosen = [rows[i % len(rows)] for i in range(wanted)]
    desk.prefetch(chosen)
    conversations = [multimodal(row["prompt"], row["images"]) for row in chosen]
    bar, moved = progress_callback("warm-up: sampling the policy", wanted)
    with bar:
        sampled = sample_responses(
            policy.model,
            policy.processor,
            conversations,
            max_tokens=recipe.max_response_tokens,
            temperature=recipe.discriminator.warmup.temperature,
            seed=recipe.seed,
            suppress=placeholder_ids(policy.processor),
            batch_size=max(recipe.micro_batch, recipe.rollouts),
            on_batch=moved,
        )
    reader = PartReader(policy.processor, policy.grammar)
    everything = Comparisons(
        prompts=[reader.prompt(conversation) for conversation in conversations],
        teacher=[reader.text(answer) for answer in desk.answers(chosen)],
        rollouts=[reader.tokens(response.token_ids) for response in sampled],
        prompt_of=range(wanted),
    )
    held_out = recipe.discriminator.warmup.held_out
    return _select(everything, range(held_out, wanted)), _select(everything, range(held_out))


def _select(pairs: Comparisons, chosen: Sequence[int]) -> Comparisons:
    return Comparisons(
        prompts=[pairs.prompts[i] for i in chosen],
        teacher=[pairs.teacher[i] for i in chosen],
        rollouts=[pairs.rollouts[i] for i in chosen],
        prompt_of=range(len(chosen)),
    )


def _train(
    recipe: AlignRecipe, discriminator: Discriminator, train: Comparisons, held_out: Comparisons
) -> list[dict[str, float]]:
    """One pass over the pairs; gives a line of metrics a step, the last with the held-out ones."""
    warmup = recipe.discriminator.warmup
    steps = math.ceil(len(train.rollouts) / warmup.batch_size)
    learner = learner_for(
        recipe.discriminator,
        discriminator,
        learning_rate=warmup.learning_rate,
        schedule="cosine",
        warmup_steps=round(steps * warmup.warmup_fraction),
        total_steps=steps,
        balance=WARMUP_BALANCE if isinstance(recipe.discriminator, MoEDiscriminator) else 0.0,
    )
    lines: list[dict[str, float]] = []
    bar, moved = progress_callback("warm-up: training the discriminator", steps)
    with bar:
        for step in range(steps):
            batch = range(step * warmup.batch_size, min((step + 1) * warmup.batch_size, len(train.rollouts)))
            lines.append({"step": step + 1, **learner.score_and_update(_select(train, batch)).metrics})
            moved(step + 1)
    if held_out.rollouts:
        lines[-1] |= {f"held_out/{name}": value for name, value in learner.score(held_out).metrics.items()}
    return lines
