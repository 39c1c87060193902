"""The discriminator before the game: built from a dense model, or loaded, and trained on teacher/policy pairs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich import get_console

from prism_cli.discriminator.inputs import Comparisons, Parts
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.upcycle import dense_body, upcycle
from prism_cli.errors import PrismError, RecipeError
from prism_cli.evaluation.sampling import multimodal, sample_responses
from prism_cli.models import Policy, device, load_pretrained, placeholder_ids
from prism_cli.recipes.alignment import MoEDiscriminator
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.runs import COMPLETE, write_atomically
from prism_cli.stages.build import progress_callback
from prism_cli.stages.teaching import TeacherDesk
from prism_cli.trainers.on_policy_distill import PartReader

if TYPE_CHECKING:
    from datasets import Dataset

# Published value; the game itself has none unless the recipe sets one.
WARMUP_BALANCE = 0.01
SAMPLED_AT_ONCE = 128


class Pairs(NamedTuple):
    """Policy samples beside teacher answers, without their pictures: those are encoded batch by batch.

    Attributes:
        rows: (M,) the row each pair is about.
        teacher: (M,) the teacher's parts, None where malformed.
        policy: (M,) the policy's parts, None where malformed.
    """

    rows: Sequence[int]
    teacher: Sequence[Parts | None]
    policy: Sequence[Parts | None]

    def select(self, start: int, stop: int) -> "Pairs":
        """Some pairs in a row."""
        return Pairs(self.rows[start:stop], self.teacher[start:stop], self.policy[start:stop])


def warm_discriminator(
    recipe: AlignRecipe, policy: Policy, rows: "Dataset", desk: TeacherDesk, folder: Path
) -> Discriminator:
    """A warm discriminator: the one the recipe names, the one this run warmed up before, or a new one.

    Args:
        recipe: The stage's recipe.
        policy: Whose responses the judge learns to tell from the teacher's.
        rows: Prompts for the pairs.
        desk: The teacher.
        folder: Where the warm-up is kept; complete once its marker stands.
    """
    if recipe.discriminator.path is not None:
        return Discriminator.from_pretrained(recipe.discriminator.path)
    if (folder / COMPLETE).is_file():
        return Discriminator.from_pretrained(folder / "discriminator")
    folder.mkdir(parents=True, exist_ok=True)
    reader = PartReader(policy.processor, policy.grammar)
    pairs = _pairs(recipe, policy, rows, desk, reader, folder / "samples.jsonl")
    # From here on nothing depends on what ran before, so a warm-up that was killed ends the same when run again.
    torch.manual_seed(recipe.seed)
    discriminator = build_discriminator(recipe, policy).to(device())
    metrics = _train(recipe, discriminator, pairs, rows, reader)
    discriminator.save_pretrained(folder / "discriminator")
    _say_accuracy(metrics[-1])
    write_atomically(folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in metrics))
    write_atomically(folder / COMPLETE, json.dumps({"pairs": len(pairs.rows)}))
    return discriminator


def _say_accuracy(last: dict[str, float]) -> None:
    prefix = "held_out/discriminator/accuracy/"
    found = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
    told = ", ".join(f"{part} {value:.2f}" for part, value in found.items())
    get_console().print(f"warm-up: the judge tells held-out pairs apart with accuracy {told}")


def build_discriminator(recipe: AlignRecipe, policy: Policy) -> Discriminator:
    """A cold discriminator of the recipe's type, made from its base or from the policy's body."""
    section = recipe.discriminator
    dense = policy.model if section.base is None else _base(section.base, policy)
    if isinstance(section, MoEDiscriminator):
        body: Any = upcycle(dense, section.experts, section.top_k, section.noise, section.noise_scale, seed=recipe.seed)
    else:
        body = dense_body(dense)
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


def _base(path: str, policy: Policy) -> Any:
    """The dense model a judge is built from; it must read the policy's tokens.

    Raises:
        RecipeError: another vocabulary.
    """
    model, processor = load_pretrained(path, dtype="float32")
    if processor.tokenizer.get_vocab() != policy.processor.tokenizer.get_vocab():
        raise RecipeError(
            f"discriminator.base {path} has another vocabulary than the policy", "take a model of the same family"
        )
    return model


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
    recipe: AlignRecipe, policy: Policy, rows: "Dataset", desk: TeacherDesk, reader: PartReader, path: Path
) -> Pairs:
    """The policy's samples beside the teacher's answers; rows are taken again when there are fewer than pairs."""
    warmup = recipe.discriminator.warmup
    wanted = [i % len(rows) for i in range(warmup.held_out + warmup.pairs)]
    ids = [{"id": id} for id in rows["id"]]
    # Each row is asked once, however many pairs it is in: a request holds its pictures.
    asked = list(dict.fromkeys(wanted))
    desk.prefetch([ids[i] for i in asked])
    sampled = _samples(recipe, policy, rows, wanted, path)
    answers = dict(zip(asked, map(reader.text, desk.answers([ids[i] for i in asked])), strict=True))
    taught = [answers[i] for i in wanted]
    pairs = Pairs(wanted, taught, [reader.tokens(token_ids) for token_ids in sampled])
    usable = sum(None not in pair for pair in zip(pairs.teacher, pairs.policy, strict=True))
    if not usable:
        malformed = "teacher answer" if all(parts is None for parts in pairs.teacher) else "policy sample"
        raise PrismError(
            f"the judge can't be warmed up: every {malformed} of {len(wanted)} pairs is malformed",
            "train SFT longer, or declare the response.parts that the texts have",
        )
    get_console().print(f"warm-up: {usable} of {len(wanted)} pairs are well-formed on both sides")
    return pairs


def _samples(
    recipe: AlignRecipe, policy: Policy, rows: "Dataset", wanted: Sequence[int], path: Path
) -> list[list[int]]:
    """The policy's responses, (M,) token ids; kept batch by batch, so that a kill loses one batch at most."""
    done = _whole_lines(path)
    policy.model.to(device())
    bar, moved = progress_callback("warm-up: sampling the policy", len(wanted))
    with bar, open(path, "a", encoding="utf-8") as file:
        for start in range(0, len(wanted), SAMPLED_AT_ONCE):
            if start < len(done):
                continue
            batch = [rows[i] for i in wanted[start : start + SAMPLED_AT_ONCE]]
            responses = sample_responses(
                policy.model,
                policy.processor,
                [multimodal(row["prompt"], row["images"]) for row in batch],
                max_tokens=recipe.max_response_tokens,
                temperature=recipe.discriminator.warmup.temperature,
                # Each batch has a seed of its own, so that one sampled after a restart is the same.
                seed=recipe.seed * 1_000_000 + start,
                suppress=placeholder_ids(policy.processor),
                batch_size=max(recipe.micro_batch, recipe.rollouts),
            )
            file.writelines(f"{json.dumps(response.token_ids)}\n" for response in responses)
            file.flush()
            done += [response.token_ids for response in responses]
            moved(len(done))
    return done


def _whole_lines(path: Path) -> list[list[int]]:
    """Samples kept before, in whole batches; what a kill left of another is cut off."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text.splitlines()[: text.count("\n") // SAMPLED_AT_ONCE * SAMPLED_AT_ONCE]
    write_atomically(path, "".join(f"{line}\n" for line in whole))
    return [json.loads(line) for line in whole]


def _train(
    recipe: AlignRecipe, discriminator: Discriminator, pairs: Pairs, rows: "Dataset", reader: PartReader
) -> list[dict[str, float]]:
    """One pass over the pairs; gives a line of metrics a step, the last with the held-out ones."""
    warmup = recipe.discriminator.warmup
    held_out, train = pairs.select(0, warmup.held_out), pairs.select(warmup.held_out, len(pairs.rows))
    steps = math.ceil(len(train.rows) / warmup.batch_size)
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
            batch = train.select(step * warmup.batch_size, (step + 1) * warmup.batch_size)
            lines.append({"step": step + 1, **learner.score_and_update(_comparisons(batch, rows, reader)).metrics})
            moved(step + 1)
    lines[-1] |= _held_out(learner, held_out, rows, reader)
    return lines


def _held_out(learner: DiscriminatorLearner, pairs: Pairs, rows: "Dataset", reader: PartReader) -> dict[str, float]:
    """The judge's metrics on held-out pairs, measured on all of them at once."""
    metrics = learner.score(_comparisons(pairs, rows, reader)).metrics
    return {f"held_out/{name}": value for name, value in metrics.items()}


def _comparisons(pairs: Pairs, rows: "Dataset", reader: PartReader) -> Comparisons:
    chosen = [rows[i] for i in pairs.rows]
    return Comparisons(
        prompts=[reader.prompt(multimodal(row["prompt"], row["images"])) for row in chosen],
        teacher=pairs.teacher,
        rollouts=pairs.policy,
        prompt_of=range(len(chosen)),
    )
