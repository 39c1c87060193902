"""`prism eval --attribute`: why wrong answers are wrong, found by having the policy answer again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prism_cli.assembly.data import load_data
from prism_cli.assembly.teacher import open_teacher
from prism_cli.errors import RecipeError
from prism_cli.progress import progress
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.recipes.teachers import DatasetTeacher
from prism_cli.responses import Grammar, Part
from prism_cli.runs.files import write_atomically
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

    from prism_cli.evaluation.attribution import Reread, Retry, Tried, Wrong
    from prism_cli.models import Policy

TRIED_AT_ONCE = 32
DECODINGS = {"greedy": "greedy", "samples": "sampled"}


class Place(NamedTuple):
    """Where a wrong response stands.

    Attributes:
        row: Index of the question.
        kind: "greedy" or "samples".
        number: Which of the question's responses of this kind.
    """

    row: int
    kind: str
    number: int


class CaptionBlock(NamedTuple):
    """The block in which a response says what it sees.

    Attributes:
        tag: Its tag.
        alone: The grammar of a response's beginning up to its end.
    """

    tag: str
    alone: Grammar


def caption_block(grammar: Grammar) -> CaptionBlock:
    """The block that is replaced: the first part, which must be one block, before another part.

    Raises:
        RecipeError: the grammar has none.
    """
    (name, part), *others = grammar.parts.items()
    if len(part.tags) != 1 or not others:
        raise RecipeError(
            f"attribution: the responses have no block for what is seen (parts: {', '.join(grammar.parts)})",
            "leave out --attribute, or evaluate runs whose first part is one block and not the only part",
        )
    return CaptionBlock(part.tags[0], Grammar({name: Part(part.tags, 1.0)}, None))


def complete(recipe: EvalRecipe, name: str, folder: Path) -> bool:
    """Whether attribution-<run>.jsonl has a cause for every wrong answer that is asked about."""
    path = folder / f"attribution-{name}.jsonl"
    wrong = _wrong_places(_lines(folder / f"samples-{name}.jsonl"), all_of_them=recipe.attribution == "all")
    return path.exists() and len(_lines(path)) >= len(list(wrong))


def attribute(
    recipe: EvalRecipe,
    name: str,
    reference: str,
    run: Run,
    taught: Callable[["Policy", "Dataset"], Sequence[str | None] | None],
) -> None:
    """Writes attribution-<run>.jsonl from samples-<run>.jsonl; continues where it was stopped.

    Args:
        recipe: The evaluation.
        name: The evaluated run's name in it.
        reference: Where that run is.
        run: The evaluation's folder.
        taught: Gives the teacher's text of each row, or None.
    """
    from prism_cli.evaluation.attribution import cause_of, holds
    from prism_cli.models import device, load_policy
    from prism_cli.rewards.accuracy import is_correct

    path = run.folder / f"attribution-{name}.jsonl"
    samples = _lines(run.folder / f"samples-{name}.jsonl")
    places = list(_wrong_places(samples, all_of_them=recipe.attribution == "all"))
    if not places:
        write_atomically(path, "")
        return
    policy = load_policy(resolve_model(reference)[0])
    policy.model.to(device())
    rows = load_data(recipe.data, policy.settings)
    cases = _cases(policy, rows, samples, places, taught(policy, rows))
    tried = _tried(recipe, name, policy, rows, places, cases, run.folder / f"retries-{name}.jsonl")
    reread = _reread(recipe, policy, rows, places, cases, tried, run)
    found = []
    for i, (place, case, answers) in enumerate(zip(places, cases, tried, strict=True)):
        line = {"id": rows[place.row]["id"], "source": rows[place.row]["source"], "decoding": DECODINGS[place.kind]}
        line |= {"number": place.number, "cause": cause_of(case, answers, is_correct, reread.get(i))}
        read = reread[i]._asdict() if i in reread else None
        line |= {"answer": case.answer, **answers._asdict(), "reread": read}
        found.append(line | {"holds": holds(case, answers, is_correct)})
    write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in found))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _wrong_places(samples: Sequence[Mapping[str, Any]], all_of_them: bool) -> Iterator[Place]:
    """Responses judged wrong, the greedy ones first."""
    for kind in DECODINGS if all_of_them else ("greedy",):
        for row, line in enumerate(samples):
            responses = line.get(kind) or []
            for number, response in enumerate([responses] if isinstance(responses, dict) else responses):
                if response.get("accuracy") == 0:
                    yield Place(row, kind, number)


def _cases(
    policy: "Policy",
    rows: "Dataset",
    samples: Sequence[Mapping[str, Any]],
    places: Sequence[Place],
    taught: Sequence[str | None] | None,
) -> list["Wrong"]:
    from prism_cli.evaluation.attribution import Wrong
    from prism_cli.rewards.accuracy import is_correct

    tag = caption_block(policy.grammar).tag
    told: list[str | None] = list(rows["caption"])
    known: list[str | None] = list(taught if taught is not None else rows["teacher_response"])
    questions = [prompt[-1]["content"] for prompt in rows["prompt"]]
    cases = []
    for row, kind, number in places:
        said = samples[row][kind]
        response = policy.grammar.parse((said if kind == "greedy" else said[number])["text"])
        teacher = policy.grammar.parse(known[row] or "")
        accepted = tuple(rows["answers"][row])
        trusted = teacher.answer is not None and is_correct(teacher.answer, accepted, questions[row])
        seen = told[row] or (teacher.blocks[tag] if trusted else None)
        cases.append(Wrong(questions[row], accepted, response.answer, response.blocks.get(tag), seen, teacher.answer))
    return cases


# The policy answers again --------------------------------------------------------------------------------------------


def _tried(
    recipe: EvalRecipe,
    name: str,
    policy: "Policy",
    rows: "Dataset",
    places: Sequence[Place],
    cases: Sequence["Wrong"],
    path: Path,
) -> list["Tried"]:
    """What came when one thing was changed; kept on disk lot by lot."""
    from prism_cli.evaluation.attribution import Tried, retry

    done = _whole_lots(path)
    answer = _answering(policy, rows, [place.row for place in places], recipe)
    with progress(f"attribute {name}", len(cases)) as on_progress, open(path, "a", encoding="utf-8") as file:
        for start in range(len(done), len(cases), TRIED_AT_ONCE):
            on_progress(start)
            lot = cases[start : start + TRIED_AT_ONCE]
            found = retry(lot, lambda retries, start=start: answer(start, retries))
            file.writelines(f"{json.dumps(one._asdict())}\n" for one in found)
            file.flush()
            done += [one._asdict() for one in found]
        on_progress(len(done))
    return [Tried(**one) for one in done]


def _whole_lots(path: Path) -> list[dict[str, Any]]:
    """What an earlier start tried; a lot that a kill cut off is tried again."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text.splitlines()[: text.count("\n") // TRIED_AT_ONCE * TRIED_AT_ONCE]
    write_atomically(path, "".join(f"{line}\n" for line in whole))
    return [json.loads(line) for line in whole]


def _answering(
    policy: "Policy", rows: "Dataset", row_of: Sequence[int], recipe: EvalRecipe
) -> Callable[[int, Sequence["Retry"]], list[str | None]]:
    """A function of the first case's index and retries that has the policy go on from given captions."""
    from prism_cli.evaluation.sampling import sample_responses
    from prism_cli.models import multimodal, placeholder_ids

    block = caption_block(policy.grammar)

    def answer(first: int, retries: Sequence["Retry"]) -> list[str | None]:
        begun = [block.alone.render({block.tag: retry.caption}) for retry in retries]
        wanted = [(row_of[first + retry.case], retry.picture) for retry in retries]
        followed = sample_responses(
            policy.model,
            policy.processor,
            [multimodal(rows[row]["prompt"], _pictures(rows, row, picture)) for row, picture in wanted],
            max_tokens=recipe.max_response_tokens,
            temperature=0.0,
            seed=recipe.seed,
            suppress=placeholder_ids(policy.processor),
            batch_size=recipe.batch_size,
            prefills=begun,
        )
        texts = [f"{start} {more.text}" for start, more in zip(begun, followed, strict=True)]
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
    return next((found for i in others if i != row and len(found := rows[i]["images"]) == len(own)), own)


def _blank(image: "Image.Image") -> "Image.Image":
    """A picture of the same size in this one's mean colour."""
    from PIL import Image

    return image.convert("RGB").resize((1, 1), Image.Resampling.BOX).resize(image.size)


# The teacher reads the response's caption ----------------------------------------------------------------------------


def _reread(
    recipe: EvalRecipe,
    policy: "Policy",
    rows: "Dataset",
    places: Sequence[Place],
    cases: Sequence["Wrong"],
    tried: Sequence["Tried"],
    run: Run,
) -> dict[int, "Reread"]:
    """Case → what the teacher answers from captions alone, where the policy's own answers leave the cause open."""
    from prism_cli.data.rows import dataset, row
    from prism_cli.evaluation.attribution import Reread, worth_rereading
    from prism_cli.rewards.accuracy import is_correct

    pairs = enumerate(zip(cases, tried, strict=True))
    asked = [i for i, (case, answers) in pairs if worth_rereading(case, answers, is_correct)]
    section = recipe.teacher
    if section is None or isinstance(section, DatasetTeacher) or not asked:
        return {}
    reader = section.model_copy(update={"modality": "text", "check": False, "max_failed": 1.0})
    captions = {f"{i}/{which}": getattr(cases[i], which) for i in asked for which in ("told", "caption")}
    blind = []
    for id, caption in captions.items():
        prompt = rows[places[int(id.partition("/")[0])].row]["prompt"]
        blind.append(cast(dict[str, Any], {**row(id, "", [], caption=caption), "prompt": prompt}))
    origin = {"instruction": policy.instruction, "data": recipe.data}
    with open_teacher(reader, policy.grammar, run, dataset(blind), **origin) as desk:
        texts = desk.answers([{"id": id} for id in captions])
        answers = {id: desk.grammar.parse(text or "").answer for id, text in zip(captions, texts, strict=True)}
    return {i: Reread(answers[f"{i}/caption"], answers[f"{i}/told"]) for i in asked}


# Summing up ----------------------------------------------------------------------------------------------------------


def summed_up(folder: Path, name: str) -> list[dict[str, Any]]:
    """A run's causes as shares of its wrong answers, with intervals: by decoding, over all sources and one by one.

    `holds` has the shares of the answers tried that came again from their own caption: beside the own picture, without
    one, beside another.
    """
    lines, found = _lines(folder / f"attribution-{name}.jsonl"), []
    for decoding in DECODINGS.values():
        decoded = [line for line in lines if line["decoding"] == decoding]
        sources = sorted({line["source"] for line in decoded})
        for source in [None, *sources] if len(sources) > 1 else [None]:
            chosen = [line for line in decoded if source in (None, line["source"])]
            found += [{"run": name, "decoding": decoding, "source": source, **_shares(chosen)}] if chosen else []
    return found


def _shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from prism_cli.evaluation.attribution import CAUSES, HOLDS
    from prism_cli.evaluation.intervals import mean_interval

    questions = list(dict.fromkeys(line["id"] for line in lines))

    def share(of: Sequence[Mapping[str, Any]], true: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
        values: dict[str, list[float]] = {id: [] for id in questions}
        for line in of:
            values[line["id"]].append(float(true(line)))
        return mean_interval(list(values.values()))._asdict()

    tried = [line for line in lines if line["holds"]]
    causes = {cause: share(lines, lambda line, cause=cause: line["cause"] == cause) for cause in CAUSES}
    held = {way: share(tried, lambda line, way=way: line["holds"][way]) for way in HOLDS} if tried else {}
    return {"wrong": len(lines), "causes": causes, "holds": held}
