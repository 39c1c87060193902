"""The pairs a judge is warmed up on: teacher answers beside policy samples, taken now or read from a file."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from rich import get_console

from prism_cli import processes
from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import TRANSFORMERS, chosen_engine, sampler
from prism_cli.assembly.policy_samples import at_once, kept_samples
from prism_cli.assembly.teacher import TeacherAnswers
from prism_cli.data.lengths import refuse_over_long
from prism_cli.discriminator.inputs import Parts
from prism_cli.discriminator.pairs import Pairs
from prism_cli.discriminator.reader import PartReader
from prism_cli.errors import DataError, PrismError
from prism_cli.models import Policy
from prism_cli.recipes.stages import AlignRecipe, WarmupRecipe

if TYPE_CHECKING:
    from datasets import Dataset


def sampled_pairs(
    recipe: AlignRecipe | WarmupRecipe,
    policy: Policy,
    rows: "Dataset",
    desk: TeacherAnswers,
    reader: PartReader,
    path: Path,
) -> Pairs:
    """The policy's samples beside the teacher's answers; rows are taken again when there are fewer than pairs.

    Args:
        recipe: Of the stage.
        policy: Who is sampled.
        rows: The prompts.
        desk: The teacher.
        reader: Texts and tokens to parts.
        path: Where samples are kept, so that a killed command samples none again.

    Raises:
        PrismError: no pair can be compared.
    """
    warmup = recipe.discriminator.warmup
    wanted = [i % len(rows) for i in range(warmup.held_out + warmup.pairs)]
    ids = [{"id": id} for id in rows["id"]]
    # Each row is asked once, however many pairs it is in: a request holds its pictures.
    asked = list(dict.fromkeys(wanted))
    desk.prefetch([ids[i] for i in asked])
    sizes = {"max_tokens": recipe.max_response_tokens, "batch_size": _at_once(recipe)}
    how: dict = {"temperature": warmup.temperature, "label": "warm-up: sampling the policy"}
    # A vLLM beside the trainer's would have to be told each process's device.
    engine = chosen_engine(recipe, policy) if processes.world_size() == 1 else TRANSFORMERS
    # Each process samples a share and keeps it in a file of its own.
    rank, world = processes.rank(), processes.world_size()
    kept = path if world == 1 else path.with_name(f"{path.stem}-{rank}-of-{world}{path.suffix}")
    how |= {"seed": recipe.seed * world + rank}
    with sampler(engine, policy, policy.model.name_or_path, **sizes) as sample:
        share = kept_samples(sample, rows, wanted[rank::world], kept, **how, lot=at_once(engine))
    sampled = _interleaved(processes.gather(share))
    answers = dict(zip(asked, map(reader.text, desk.answers([ids[i] for i in asked])), strict=True))
    taught = [answers[i] for i in wanted]
    return _usable(Pairs(rows, wanted, taught, [reader.tokens(token_ids) for token_ids in sampled]), warmup.held_out)


def _interleaved(shares: list[list[list[int]]]) -> list[list[int]]:
    """Of shares that took each a row in turn, all in order."""
    return [responses[i] for i in range(len(shares[0])) for responses in shares if i < len(responses)]


def _at_once(recipe: AlignRecipe | WarmupRecipe) -> int:
    """Responses of the policy generated together: no more than the game's rollouts, so that what it fits on fits."""
    return recipe.batch_size if isinstance(recipe, WarmupRecipe) else max(recipe.micro_batch, recipe.rollouts)


def read_pairs(recipe: AlignRecipe | WarmupRecipe, policy: Policy, reader: PartReader) -> Pairs:
    """The pairs of `discriminator.warmup.data`: its first are held out, the others come in an order of the seed.

    Raises:
        DataError: rows without both texts, or too few of them.
        PrismError: no pair can be compared.
    """
    warmup = recipe.discriminator.warmup
    assert warmup.data is not None, "pairs are read where the recipe names a file"
    with processes.main_first():
        rows = load_data(warmup.data, policy.settings)
    for column, whose in (("teacher_response", "teacher_…"), ("student_response", "student_…")):
        lacking = [id for id, text in zip(rows["id"], rows[column], strict=True) if not text]
        if lacking:
            raise DataError(
                f"{warmup.data.path}: {len(lacking)} of {len(rows)} rows have no text of {whose}, the first is "
                f"{lacking[0]}",
                "pairs come from `prism collect --from RUN`; prompts alone belong in `data`",
            )
    if len(rows) <= warmup.held_out:
        raise DataError(
            f"{warmup.data.path} has {len(rows)} pairs and {warmup.held_out} are held out: none is left to train on",
            "give more pairs, or lower discriminator.warmup.held_out",
        )
    refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
    order = list(range(warmup.held_out, len(rows)))
    random.Random(recipe.seed).shuffle(order)
    wanted = [*range(warmup.held_out), *order[: warmup.pairs]]
    tokenizer = policy.processor.tokenizer

    def parts(column: str) -> list[Parts | None]:
        texts = list(rows[column])
        encoded = (tokenizer(texts[i], add_special_tokens=False)["input_ids"] for i in wanted)
        return [reader.tokens(token_ids) for token_ids in encoded]

    return _usable(Pairs(rows, wanted, parts("teacher_response"), parts("student_response")), warmup.held_out)


def _usable(pairs: Pairs, held_out: int) -> Pairs:
    """The pairs, of which it says how many can be compared.

    Raises:
        PrismError: none of those to train on.
    """
    total = len(pairs.rows)
    usable = [None not in pair for pair in zip(pairs.teacher, pairs.policy, strict=True)]
    if not any(usable[held_out:]):
        teacher, policy = (sum(parts is None for parts in side) for side in (pairs.teacher, pairs.policy))
        raise PrismError(
            f"the judge can't be warmed up: of {total} pairs none to train on is well-formed on both sides; malformed "
            f"are {teacher} teacher answers and {policy} policy samples",
            _cure(teacher, policy),
        )
    get_console().print(f"warm-up: {sum(usable)} of {total} pairs are well-formed on both sides")
    return pairs


def _cure(teacher: int, policy: int) -> str:
    """What to do about so many malformed texts of each side."""
    if teacher > policy:
        return (
            "the teacher's side: look at its answers (`prism teacher check`, `prism teacher log`), or declare the "
            "response.parts that they have"
        )
    if policy > teacher:
        return (
            "the policy's side: train SFT longer on this form, allow longer responses (max_response_tokens), or "
            "declare the response.parts that its texts have"
        )
    return "both sides alike: declare the response.parts that the texts have"
