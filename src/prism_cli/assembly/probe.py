"""Whether a teacher is there, sees what it is sent and keeps the form: asked before anything is paid for in bulk."""

import io
from collections.abc import Sequence
from contextlib import closing
from itertools import count
from statistics import median
from typing import Any, NamedTuple

from PIL import Image

from prism_cli.assembly.asking import Asking
from prism_cli.assembly.data import parts, resolve_data
from prism_cli.assembly.endpoint import LiveTeacher, client_of
from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import TeacherError
from prism_cli.recipes.sections import Data
from prism_cli.recipes.teachers import EmbeddedTeacher, Teacher
from prism_cli.rewards.accuracy import is_correct
from prism_cli.teacher.probe import ProbePair, is_right, number_pairs, pairs_seen
from prism_cli.teacher.teachers import EndpointTeacher, Failed
from prism_cli.worlds import world

# A seeing teacher may misread a picture; one pair that is right on both sides is proof enough.
MIN_PAIRS_SEEN = 1


class Probed(NamedTuple):
    """How a teacher did on probes.

    Attributes:
        pairs: Pairs of pictures it was asked about.
        seen: Pairs of which both pictures were answered right.
        asked: Questions asked, two a pair.
        well_formed: Answers in the asked form.
        failed: Why questions got no answer, one each.
        answers: (expected, answered), one each that got an answer.
        seconds: The median call's, or None where no time is known.
        prompt_tokens: Mean of a call, or None where the endpoint doesn't count.
        completion_tokens: Likewise.
    """

    pairs: int
    seen: int
    asked: int
    well_formed: int
    failed: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    seconds: float | None
    prompt_tokens: float | None
    completion_tokens: float | None

    @property
    def sees(self) -> bool:
        """Whether it answered from the pictures."""
        return self.seen >= MIN_PAIRS_SEEN

    @property
    def silent(self) -> bool:
        """Whether it answered nothing, so that nothing can be said of its sight."""
        return not self.answers


def probe_pairs(section: Teacher, data: Data | None) -> list[ProbePair]:
    """What to ask: a picture world's own pairs where rows or teacher are of one, else numbers to read."""
    name = section.world if isinstance(section, EmbeddedTeacher) else _world_of(data)
    if name is None:
        return number_pairs()
    return [ProbePair(p.question, _encoded(p.images), p.answers, p.captions) for p in world(name).probe()]


def probed(
    section: LiveTeacher,
    how: Asking,
    url: str,
    model: str,
    store: AnswerStore,
    budget: Budget,
    data: Data | None = None,
    anew: bool = False,
) -> Probed:
    """Asks a teacher about pairs of pictures, once each: what it writes unasked-for is part of what is measured.

    The newest answers that are kept stand if the teacher passes by them, so that a rerun costs nothing. If not it is
    asked again: what made it blind may be mended, and is no part of what answers are kept under.

    Args:
        section: The teacher.
        how: How rows are put to it.
        url: Its base URL.
        model: Whom to ask there.
        store: Where answers are kept.
        budget: What may be spent.
        data: Where a stage's rows are from; a picture world brings pairs of its own.
        anew: Ask, whatever is kept.

    Raises:
        TeacherError: the endpoint can't be reached, or refuses the key.
        BudgetError: a cap was reached.
    """
    pairs = probe_pairs(section, data)
    with closing(client_of(section, url, model, store, budget, attempts=1, check=lambda text: None)) as client:
        # Each time asks for another sample, as a question's first answer stays its answer.
        times = next(time for time in count() if not _was_asked(client, how, pairs, time))
        if times and not anew and (last := _probe(client, how, pairs, times - 1)).sees:
            return last
        return _probe(client, how, pairs, times)


def _was_asked(client: EndpointClient, asking: Asking, pairs: Sequence[ProbePair], sample: int) -> bool:
    requests = _requests(asking, _questions(pairs), sample)
    return any(client.store.answers(client.key(request)) for request in requests)


def _probe(client: EndpointClient, asking: Asking, pairs: Sequence[ProbePair], sample: int) -> Probed:
    """Asks about every pair; what is kept of the same sample is not asked again."""
    questions = _questions(pairs)
    requests = _requests(asking, questions, sample)
    found = EndpointTeacher(client).answers(requests)
    right, well_formed, answers = [], 0, []
    for (question, _, _, expected, other), answer in zip(questions, found, strict=True):
        if isinstance(answer, Failed):
            right.append(False)
            continue
        response = asking.grammar.parse(answer.text)
        text = response.answer if response.answer is not None else answer.text
        right.append(is_right(text, expected, other, lambda text, one, asked=question: is_correct(text, [one], asked)))
        well_formed += response.well_formed
        answers.append((expected, " ".join(text.split())[:80]))
    given = [answer for answer in found if not isinstance(answer, Failed)]
    return Probed(
        pairs=len(pairs),
        seen=pairs_seen(right),
        asked=len(requests),
        well_formed=well_formed,
        failed=tuple(answer.reason for answer in found if isinstance(answer, Failed)),
        answers=tuple(answers),
        seconds=_seconds(client, requests),
        prompt_tokens=_mean([answer.prompt_tokens for answer in given]),
        completion_tokens=_mean([answer.completion_tokens for answer in given]),
    )


def refuse_blind(found: Probed, name: str) -> None:
    """Stops before a stage is taught by one who can't see.

    Raises:
        TeacherError: no pair was answered right, with what was answered.
    """
    if found.sees:
        return
    if found.silent:
        reasons = ", ".join(sorted(set(found.failed)))
        raise TeacherError(
            f"{name} answered none of {found.asked} probes ({reasons}), so it can't be told whether it sees",
            "look at its replies with `prism teacher log`; teacher.check=false skips this",
        )
    said = [f"{answer!r} where {expected!r} is right" for expected, answer in found.answers if answer != expected]
    why = "; ".join([*said[:2], *sorted(set(found.failed))[:2]])
    raise TeacherError(
        f"{name} does not see the pictures it is sent: it answered none of {found.pairs} pairs right ({why})",
        "check that the endpoint passes pictures on (`prism teacher check`), or teach by text alone: "
        "teacher.modality=text; teacher.check=false skips this",
    )


def _world_of(data: Data | None) -> str | None:
    sources = [] if data is None else parts(resolve_data(data))
    return next((source.world for _, _, source in sources if source.world is not None), None)


def _questions(pairs: Sequence[ProbePair]) -> list[tuple[str, bytes, str, str, str]]:
    """Question, picture, caption, right answer and the other picture's, two a pair."""
    return [
        (pair.question, *side)
        for pair in pairs
        for side in zip(pair.images, pair.captions, pair.answers, pair.answers[::-1], strict=True)
    ]


def _requests(
    asking: Asking, questions: Sequence[tuple[str, bytes, str, str, str]], sample: int
) -> list[EndpointRequest]:
    return [asking.request(_row(number, *asked[:3]), sample) for number, asked in enumerate(questions, 1)]


def _row(number: int, question: str, image: bytes, caption: str) -> dict[str, Any]:
    return {
        "id": f"probe {number}",
        "prompt": [{"role": "user", "content": question}],
        "images": [{"bytes": image, "path": None}],
        "caption": caption,
    }


def _encoded(images: Sequence[Image.Image]) -> tuple[bytes, bytes]:
    first, second = (io.BytesIO(), io.BytesIO())
    for image, buffer in zip(images, (first, second), strict=True):
        image.save(buffer, format="PNG")
    return first.getvalue(), second.getvalue()


def _seconds(client: EndpointClient, requests: Sequence[Any]) -> float | None:
    kept = [answer.seconds for request in requests for answer in client.store.answers(client.key(request))]
    known = [seconds for seconds in kept if seconds is not None]
    return median(known) if known else None


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
