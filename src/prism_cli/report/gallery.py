"""The same questions answered by every evaluated run, side by side, beside the teacher's and the right answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.report.folder import Step
from prism_cli.report.showcase import MALFORMED, TEACHER, Card, Side, read, shortened
from prism_cli.report.tables import run_before
from prism_cli.responses import Response

if TYPE_CHECKING:
    from datasets import Dataset

MOST_QUESTIONS, MOST_CHARACTERS = 200, 2_000_000

Samples = Mapping[str, Sequence[Mapping[str, Any]]]


class Gallery(NamedTuple):
    """Some questions of one evaluation.

    Attributes:
        id: Its step.
        cards: A question each.
        total: How many questions were evaluated.
    """

    id: str
    cards: list[Card]
    total: int


def chosen(samples: Samples, most: int = MOST_QUESTIONS) -> list[str]:
    """Ids of questions worth a look: in turn one of each kind, the kinds being who is right and who is malformed.

    Args:
        samples: Run → the lines of its samples file.
        most: How many.
    """
    seen: dict[str, list[tuple]] = {}
    for lines in samples.values():
        for line in lines:
            response = _response(line)
            seen.setdefault(str(line.get("id")), []).append((response.get("accuracy"), response.get("well_formed")))
    kinds: dict[tuple, list[str]] = {}
    for id, kind in seen.items():
        kinds.setdefault(tuple(kind), []).append(id)
    # Where runs differ first.
    ordered = sorted(kinds.items(), key=lambda item: -len(set(item[0])))
    return [id for turn in zip_longest(*(ids for _, ids in ordered)) for id in turn if id is not None][:most]


def shown_questions(
    samples: Samples,
    rows: "Dataset",
    teacher_texts: Sequence[str | None] | None,
    pictures: Callable[[Mapping[str, Any]], list[str]],
) -> list[dict[str, Any]]:
    """The questions of an evaluation that its page shows, with their pictures.

    Args:
        samples: Run → the lines of its samples file.
        rows: All questions.
        teacher_texts: The teacher's text of each row, where there is one.
        pictures: A row's pictures as data URLs.
    """
    places = {id: i for i, id in enumerate(rows["id"])}
    questions = []
    for index in (places[id] for id in chosen(samples) if id in places):
        row: dict[str, Any] = rows[index]
        texts = {"question": row["prompt"][-1]["content"], "answers": list(row["answers"] or ())}
        teacher = teacher_texts[index] if teacher_texts else row.get("teacher_response")
        one = {"id": row["id"], "source": row["source"], **texts}
        questions.append({**one, "images": pictures(row), "teacher": teacher})
    return questions


def gallery(step: Step, before: Mapping[str, str], parse: Callable[[str], Response] | None) -> Gallery | None:
    """The cards of one evaluation; None where it kept no responses.

    Args:
        step: The evaluation.
        before: Run → the run it started from, as far as is known.
        parse: Splits a response into its parts.
    """
    samples = {run: {str(line.get("id")): line for line in lines} for run, lines in step.samples.items() if lines}
    runs = [run for run in _order(step) if run in samples]
    if not runs:
        return None
    questions = {str(row.get("id")): row for row in step.questions}
    causes = {(run, str(line.get("id"))): line.get("cause") for run, line in _greedy_causes(step)}
    cards, size = [], 0
    for id in chosen({run: step.samples[run] for run in runs}):
        texts = {run: samples[run][id] for run in runs if id in samples[run]}
        sides = [_side(run, texts, run_before(run, runs, before), parse) for run in texts]
        sides = [side._replace(cause=str(causes.get((side.run, id)) or "")) for side in sides]
        card = _card(id, questions.get(id, {}), [*_teachers(questions.get(id, {}), texts, parse), *sides])
        size += len(card.question) + sum(map(len, card.images)) + sum(len(t) for s in sides for _, t in s.blocks)
        if size > MOST_CHARACTERS and cards:
            break
        cards.append(card)
    return Gallery(step.id, cards, len({id for lines in samples.values() for id in lines}))


def _order(step: Step) -> list[str]:
    """Runs as the summary has them, then those not yet summed up."""
    runs = [str(run.get("id")) for run in step.summary.get("runs") or () if isinstance(run, Mapping)]
    return list(dict.fromkeys([*runs, *step.samples]))


def _greedy_causes(step: Step) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for run, lines in step.causes.items():
        yield from ((run, line) for line in lines if line.get("decoding") == "greedy")


def _response(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The greedy response, or the first sampled one."""
    samples = line.get("samples")
    first = samples[0] if isinstance(samples, list) and samples else None
    response = line.get("greedy") or first
    return response if isinstance(response, Mapping) else {}


def _side(run: str, texts: Mapping[str, Mapping[str, Any]], before: str, parse: Callable | None) -> Side:
    response = _response(texts[run])
    if "failed" in response:
        return Side(run, [], [(f"no response: {shortened(str(response['failed']), 400)}", "bad")], [], run)
    blocks, marks = read(str(response.get("text") or ""), parse, None)
    marks += [("cut off at the longest length", "bad")] if response.get("truncated") else []
    if (right := response.get("accuracy")) is not None and not (marks and marks[0][0].startswith(MALFORMED)):
        marks.append(("right", "good") if right else ("wrong", "bad"))
    shown = [(part, "right" if response[part] else "wrong") for part in ("perception", "reasoning") if part in response]
    samples = texts[run].get("samples")
    known = [s for s in samples if isinstance(s, Mapping) and "accuracy" in s] if isinstance(samples, list) else []
    if known and "greedy" in texts[run]:
        shown.append(("sampled", f"{sum(bool(s['accuracy']) for s in known)} of {len(known)} right"))
    then = _response(texts[before]).get("accuracy") if before in texts else None
    change = "" if then is None or right is None or then == right else "gained" if right > then else "lost"
    return Side(run, blocks, marks, shown, run, "", change, before)


def _teachers(row: Mapping[str, Any], texts: Mapping[str, Mapping[str, Any]], parse: Callable | None) -> list[Side]:
    text = next(
        (line["teacher"] for line in texts.values() if isinstance(line.get("teacher"), str)), row.get("teacher")
    )
    if not isinstance(text, str) or not text:
        return []
    return [Side(TEACHER, read(text, parse, None)[0], [], [])]


def _card(id: str, row: Mapping[str, Any], sides: list[Side]) -> Card:
    answers = row.get("answers")
    images = row.get("images")
    return Card(
        shortened(str(row.get("question") or f"Question {id}")),
        shortened(" or ".join(map(str, answers))) if isinstance(answers, list) else "",
        [image for image in images if isinstance(image, str)] if isinstance(images, list) else [],
        bool(row.get("image_dropped")),
        sides,
        str(row.get("source") or ""),
    )
