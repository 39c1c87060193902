"""The pairs of a warm-up: teacher answers beside policy samples, taken now or read from a file."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prism_cli import processes
from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import sampler
from prism_cli.data.lengths import refuse_over_long
from prism_cli.discriminator.inputs import Parts
from prism_cli.discriminator.pairs import Pairs, refuse_incomparable
from prism_cli.discriminator.reader import PartReader
from prism_cli.discriminator.settings import WarmupSettings
from prism_cli.errors import DataError
from prism_cli.evaluation.backend import TRANSFORMERS, Backend
from prism_cli.evaluation.kept_samples import CHUNK, SamplingPlan, kept_samples
from prism_cli.models import Policy
from prism_cli.recipes.sections import FileData
from prism_cli.teacher.answers import TeacherAnswers

if TYPE_CHECKING:
    from datasets import Dataset


class PairSampling(NamedTuple):
    """Sampling of the policy's side of the pairs.

    Attributes:
        backend: Generates, where there is one process.
        max_tokens: Longest response.
        batch_size: Responses that transformers generates together.
        temperature: Sampling temperature.
        path: Where samples are kept, so that a killed command samples none again.
    """

    backend: Backend
    max_tokens: int
    batch_size: int
    temperature: float
    path: Path


def sampled_pairs(
    settings: WarmupSettings,
    sampling: PairSampling,
    policy: Policy,
    rows: "Dataset",
    teacher: TeacherAnswers,
    reader: PartReader,
) -> Pairs:
    """The policy's samples beside the teacher's answers; rows are taken again when there are fewer than pairs.

    Args:
        settings: How many pairs.
        sampling: How the policy is sampled.
        policy: Who is sampled.
        rows: The prompts.
        teacher: Its answers.
        reader: Texts and tokens to parts.

    Raises:
        PrismError: no pair can be compared.
    """
    wanted = [i % len(rows) for i in range(settings.held_out + settings.pairs)]
    ids = [{"id": id} for id in rows["id"]]
    # Each row is asked once, however many pairs it is in: a request holds its pictures.
    questions = list(dict.fromkeys(wanted))
    teacher.prefetch([ids[i] for i in questions])
    sizes = {"max_tokens": sampling.max_tokens, "batch_size": sampling.batch_size}
    # A vLLM beside the trainer's would have to be told each process's device.
    backend = sampling.backend if processes.world_size() == 1 else TRANSFORMERS
    # Each process samples a share and keeps it in a file of its own.
    rank, world = processes.rank(), processes.world_size()
    path = sampling.path
    share_path = path if world == 1 else path.with_name(f"{path.stem}-{rank}-of-{world}{path.suffix}")
    plan = SamplingPlan(sampling.temperature, settings.seed * world + rank, backend.chunk(CHUNK))
    with sampler(backend, policy, policy.model.name_or_path, **sizes) as sample:
        share = kept_samples(sample, rows, wanted[rank::world], plan, share_path, "warm-up: sampling the policy")
    responses = _interleaved(processes.gather(share))
    texts = teacher.answers([ids[i] for i in questions])
    answers = dict(zip(questions, map(reader.text, texts), strict=True))
    pairs = Pairs(rows, wanted, [answers[i] for i in wanted], [reader.tokens(token_ids) for token_ids in responses])
    refuse_incomparable(pairs, settings.held_out)
    return pairs


def _interleaved(shares: list[list[list[int]]]) -> list[list[int]]:
    """Of shares that took each a row in turn, all in order."""
    return [responses[i] for i in range(len(shares[0])) for responses in shares if i < len(responses)]


def read_pairs(
    settings: WarmupSettings, data: FileData, policy: Policy, reader: PartReader, max_prompt_tokens: int
) -> Pairs:
    """The pairs of a file: its first are held out, the others come in an order of the seed.

    Args:
        settings: How many pairs.
        data: The file.
        policy: Whose tokens the texts become.
        reader: Tokens to parts.
        max_prompt_tokens: Longest prompt with its picture.

    Raises:
        DataError: rows without both texts, or too few of them.
        PrismError: no pair can be compared.
    """
    with processes.main_first():
        rows = load_data(data, policy.settings)
    _refuse_unpaired(rows, data.path, settings.held_out)
    refuse_over_long(rows, policy.processor, max_prompt_tokens, "max_prompt_tokens")
    order = list(range(settings.held_out, len(rows)))
    random.Random(settings.seed).shuffle(order)
    wanted = [*range(settings.held_out), *order[: settings.pairs]]
    tokenizer = policy.processor.tokenizer

    def parts(column: str) -> list[Parts | None]:
        texts = list(rows[column])
        encoded = (tokenizer(texts[i], add_special_tokens=False)["input_ids"] for i in wanted)
        return [reader.tokens(token_ids) for token_ids in encoded]

    pairs = Pairs(rows, wanted, parts("teacher_response"), parts("student_response"))
    refuse_incomparable(pairs, settings.held_out)
    return pairs


def _refuse_unpaired(rows: "Dataset", path: str, held_out: int) -> None:
    for column, side in (("teacher_response", "teacher_…"), ("student_response", "student_…")):
        missing = [id for id, text in zip(rows["id"], rows[column], strict=True) if not text]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(rows)} rows have no text of {side}, the first is {missing[0]}",
                "pairs come from `prism collect --from RUN`; prompts alone belong in `data`",
            )
    if len(rows) <= held_out:
        raise DataError(
            f"{path} has {len(rows)} pairs and {held_out} are held out: none is left to train on",
            "give more pairs, or lower discriminator.warmup.held_out",
        )
