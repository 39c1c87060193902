"""`prism eval --attribute`: the causes of wrong answers, found by having the policy answer again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prism_cli.assembly.data import load_data
from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, resolve_teacher
from prism_cli.evaluation.answering import responses_of
from prism_cli.evaluation.causes import DECODINGS, Place, caption_block, causes_file, is_attributed, wrong_places
from prism_cli.evaluation.summary import samples_file
from prism_cli.progress import progress
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.runs.chunks import chunks, in_chunks
from prism_cli.runs.files import read_lines, write_lines
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model
from prism_cli.teacher.teacher import LiveTeacher

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

    from prism_cli.evaluation.attribution import Reread, Retry, Tried, Wrong
    from prism_cli.models import Policy

# Wrong answers tried in one go, and so kept in one go.
CHUNK = 32


class _Case(NamedTuple):
    """A wrong response: where it stands, and what is known of it."""

    place: Place
    wrong: "Wrong"


def attribute(
    recipe: EvalRecipe,
    name: str,
    reference: str,
    run: Run,
    teacher_texts: Callable[["Policy", "Dataset"], Sequence[str | None] | None],
) -> None:
    """Writes attribution-<run>.jsonl from samples-<run>.jsonl, unless all is there; continues where it was stopped.

    Args:
        recipe: The evaluation.
        name: The evaluated run's name in it.
        reference: Where that run is.
        run: The evaluation's folder.
        teacher_texts: Gives the teacher's text of each row, or None.
    """
    from prism_cli.evaluation.attribution import cause_of, holds
    from prism_cli.models import device, load_policy
    from prism_cli.rewards.accuracy import is_correct

    kinds = tuple(DECODINGS) if recipe.attribution == "all" else ("greedy",)
    if is_attributed(run.folder, name, kinds):
        return
    samples = read_lines(samples_file(run.folder, name))
    places = list(wrong_places(samples, kinds))
    if not places:
        write_lines(causes_file(run.folder, name), [])
        return
    policy = load_policy(resolve_model(reference)[0])
    policy.model.to(device())
    rows = load_data(recipe.data, policy.settings)
    cases = _cases(policy, rows, samples, places, teacher_texts(policy, rows))
    tried = _tried(recipe, policy, rows, cases, run.folder / f"retries-{name}.jsonl", f"attribute {name}")
    reread = _reread(recipe, policy, rows, cases, tried, run)
    lines = []
    for i, ((place, wrong), answers) in enumerate(zip(cases, tried, strict=True)):
        line = {"id": rows[place.row]["id"], "source": rows[place.row]["source"], "decoding": DECODINGS[place.kind]}
        line |= {"number": place.number, "cause": cause_of(wrong, answers, is_correct, reread.get(i))}
        read = reread[i]._asdict() if i in reread else None
        line |= {"answer": wrong.answer, **answers._asdict(), "reread": read}
        lines.append(line | {"holds": holds(wrong, answers, is_correct)})
    write_lines(causes_file(run.folder, name), lines)


def _cases(
    policy: "Policy",
    rows: "Dataset",
    samples: Sequence[Mapping[str, Any]],
    places: Sequence[Place],
    teacher_texts: Sequence[str | None] | None,
) -> list[_Case]:
    from prism_cli.evaluation.attribution import Wrong
    from prism_cli.rewards.accuracy import is_correct

    tag = caption_block(policy.grammar).tag
    captions: list[str | None] = list(rows["caption"])
    texts: list[str | None] = list(rows["teacher_response"] if teacher_texts is None else teacher_texts)
    questions = [prompt[-1]["content"] for prompt in rows["prompt"]]
    cases = []
    for place in places:
        row, question = place.row, questions[place.row]
        response = policy.grammar.parse(responses_of(samples[row], place.kind)[place.number]["text"])
        teacher = policy.grammar.parse(texts[row] or "")
        accepted = tuple(rows["answers"][row])
        trusted = teacher.answer is not None and is_correct(teacher.answer, accepted, question)
        true_caption = captions[row] or (teacher.blocks[tag] if trusted else None)
        wrong = Wrong(question, accepted, response.answer, response.blocks.get(tag), true_caption, teacher.answer)
        cases.append(_Case(place, wrong))
    return cases


# The policy answers again --------------------------------------------------------------------------------------------


def _tried(
    recipe: EvalRecipe, policy: "Policy", rows: "Dataset", cases: Sequence[_Case], path: Path, label: str
) -> list["Tried"]:
    """The answers that came when one thing was changed; kept on disk chunk by chunk."""
    from prism_cli.evaluation.attribution import Tried, retry

    answer = _answering(recipe, policy, rows)

    def make(span: range) -> list[dict[str, Any]]:
        chunk = cases[span.start : span.stop]
        answers = retry([case.wrong for case in chunk], lambda retries: answer(chunk, retries))
        return [one._asdict() for one in answers]

    with progress(label, len(cases)) as on_progress:
        return [Tried(**one) for one in in_chunks(path, chunks(len(cases), CHUNK), make, on_progress)]


def _answering(
    recipe: EvalRecipe, policy: "Policy", rows: "Dataset"
) -> Callable[[Sequence[_Case], Sequence["Retry"]], list[str | None]]:
    """A function of cases and retries of them that has the policy go on from given captions."""
    from prism_cli.evaluation.sampling import sample_responses
    from prism_cli.models import multimodal, placeholder_ids

    block = caption_block(policy.grammar)

    def answer(cases: Sequence[_Case], retries: Sequence["Retry"]) -> list[str | None]:
        beginnings = [block.alone.render({block.tag: retry.caption}) for retry in retries]
        wanted = [(cases[retry.case].place.row, retry.picture) for retry in retries]
        responses = sample_responses(
            policy.model,
            policy.processor,
            [multimodal(rows[row]["prompt"], _pictures(rows, row, picture)) for row, picture in wanted],
            max_tokens=recipe.max_response_tokens,
            temperature=0.0,
            seed=recipe.seed,
            suppress=placeholder_ids(policy.processor),
            batch_size=recipe.batch_size,
            prefills=beginnings,
        )
        texts = [f"{start} {rest.text}" for start, rest in zip(beginnings, responses, strict=True)]
        return [policy.grammar.parse(text).answer for text in texts]

    return answer


def _pictures(rows: "Dataset", row: int, picture: str) -> list["Image.Image"]:
    """A row's pictures, blank ones of their size, or those of the next row, half the data away, that has as many."""
    own = rows[row]["images"]
    if picture == "own":
        return own
    if picture == "blank":
        return [_blank(image) for image in own]
    others = ((row + len(rows) // 2 + i) % len(rows) for i in range(len(rows)))
    return next((images for i in others if i != row and len(images := rows[i]["images"]) == len(own)), own)


def _blank(image: "Image.Image") -> "Image.Image":
    """A picture of the same size in this one's mean colour."""
    from PIL import Image

    return image.convert("RGB").resize((1, 1), Image.Resampling.BOX).resize(image.size)


# The teacher reads the response's caption ----------------------------------------------------------------------------


def _reread(
    recipe: EvalRecipe,
    policy: "Policy",
    rows: "Dataset",
    cases: Sequence[_Case],
    tried: Sequence["Tried"],
    run: Run,
) -> dict[int, "Reread"]:
    """Case → the teacher's answers from captions alone, where the policy's own answers leave the cause open."""
    from prism_cli.data.rows import dataset, row
    from prism_cli.evaluation.attribution import Reread, worth_rereading
    from prism_cli.rewards.accuracy import is_correct

    pairs = enumerate(zip(cases, tried, strict=True))
    unclear = [i for i, (case, answers) in pairs if worth_rereading(case.wrong, answers, is_correct)]
    named = None if recipe.teacher is None else resolve_teacher(recipe.teacher)
    if not isinstance(named, LiveTeacher) or not unclear:
        return {}
    reader = replace(named.by_captions(), max_failed=1.0)
    blind, ids = [], []
    for i in unclear:
        place, wrong = cases[i]
        for which, caption in (("true", wrong.true_caption), ("own", wrong.caption)):
            ids.append(f"{i}/{which}")
            question = {**row(ids[-1], "", [], caption=caption), "prompt": rows[place.row]["prompt"]}
            blind.append(cast(dict[str, Any], question))
    questions = TeacherQuestions((dataset(blind),), policy.settings, recipe.data)
    with open_teacher(reader, run, questions) as teacher:
        texts = teacher.answers([{"id": id} for id in ids])
        answers = {id: teacher.grammar.parse(text or "").answer for id, text in zip(ids, texts, strict=True)}
    return {i: Reread(answers[f"{i}/own"], answers[f"{i}/true"]) for i in unclear}
