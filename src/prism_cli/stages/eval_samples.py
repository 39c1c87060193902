"""The responses of an evaluated run and what is found of them: `samples-<run>.jsonl`, a line a question.

Responses are kept as they come, in `responses-<run>.jsonl`, until all are there and judged. Every lot has a seed of its
own, so that an evaluation continued after a kill has the responses of one that was never stopped.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import Engine, chosen_engine, sampler
from prism_cli.assembly.questions import keep_questions
from prism_cli.assembly.teacher import open_teacher
from prism_cli.errors import CheckpointError, PrismError
from prism_cli.evaluation.sampling import Sample
from prism_cli.progress import progress
from prism_cli.recipes.generation import VLLMEngine
from prism_cli.recipes.sections import WorldData
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.responses import Response, token_pieces
from prism_cli.runs.files import write_atomically
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model
from prism_cli.worlds import world

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy
    from prism_cli.rewards.verdict import Accuracy

Line = dict[str, Any]
TEACHER_LOGPROB = "teacher_logprob"
# Requests vLLM is handed at once: enough to keep it busy, few enough to lose little in a kill.
VLLM_LOT = 512


class Pass(NamedTuple):
    """All questions answered once.

    Attributes:
        kind: "greedy" or "samples".
        number: Which of its kind.
        temperature: 0 for greedy.
        seed: Of its first lot; the others add how many responses came before them.
    """

    kind: str
    number: int
    temperature: float
    seed: int

    @property
    def label(self) -> str:
        """What its responses are marked with on disk."""
        return f"{self.kind}/{self.number}"


def answer_questions(recipe: EvalRecipe, name: str, reference: str, run: Run) -> None:
    """Writes samples-<run>.jsonl, or adds the samples it lacks; continues where it was stopped.

    Args:
        recipe: The evaluation.
        name: The evaluated run's name in it.
        reference: Where that run is.
        run: The evaluation's folder.

    Raises:
        CheckpointError: the data has other rows than were answered.
        PrismError: every request failed, or the teacher or the judge did.
    """
    from prism_cli.models import load_policy

    path, partial = (run.folder / f"{what}-{name}.jsonl" for what in ("samples", "responses"))
    before = read_lines(path) if path.exists() else []
    wanted = [one for one in _passes(recipe) if not (before and _there(before[0], one))]
    if before and not wanted:
        return
    folder = resolve_model(reference)[0]
    policy = load_policy(folder)
    rows: Any = load_data(recipe.data, policy.settings)
    there = before or next(map(read_lines, run.folder.glob("samples-*.jsonl")), [])
    _check_same_rows(run.folder, [line["id"] for line in there], rows["id"] if there else [])
    taught = teacher_texts(recipe, run, policy, rows)  # before hours of sampling: a cap may end it
    engine = chosen_engine(recipe, policy)
    run.update(engines={**run.manifest.get("engines", {}), name: engine.engine})
    with sampler(engine, policy, folder, max_tokens=recipe.max_response_tokens, batch_size=recipe.batch_size) as sample:
        found = _sampled(recipe, policy, rows, wanted, partial, engine, sample, f"eval {name}")
    lines = [
        {"id": id, **({"greedy": said[0]} if recipe.greedy else {}), "samples": said[recipe.greedy :]}
        for id, said in zip(rows["id"], _by_question(before, found, len(rows)), strict=True)
    ]
    _judge(recipe, run, policy, rows, taught, lines)
    if taught is not None:
        _add_likelihoods(recipe, policy, rows, taught, lines, before)
    for outdated in ("attribution", "retries"):  # they number the wrong answers there were
        (run.folder / f"{outdated}-{name}.jsonl").unlink(missing_ok=True)
    write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in lines))
    keep_questions(run.folder, rows, taught)
    partial.unlink()


def read_lines(path: Path) -> list[Line]:
    """The objects of a file of JSON lines; what a kill left of a last one is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()[: text.count("\n")]]


def responses_of(line: Mapping[str, Any], kind: str) -> list[Line]:
    """A question's responses of a kind, "greedy" or "samples", in a line of a samples file."""
    said = line.get(kind) or []
    return said if isinstance(said, list) else [said]


# Generating ----------------------------------------------------------------------------------------------------------


def _passes(recipe: EvalRecipe) -> list[Pass]:
    greedy = [Pass("greedy", 0, 0.0, 0)] if recipe.greedy else []
    seeds = (1_000_000 * (1000 * recipe.seed + k) for k in range(recipe.samples))
    return greedy + [Pass("samples", k, recipe.temperature, seed) for k, seed in enumerate(seeds)]


def _there(line: Mapping[str, Any], one: Pass) -> bool:
    return len(responses_of(line, one.kind)) > one.number


def _sampled(
    recipe: EvalRecipe,
    policy: "Policy",
    rows: "Dataset",
    wanted: Sequence[Pass],
    partial: Path,
    engine: Engine,
    sample: Sample,
    label: str,
) -> list[Line]:
    """Text and length of each response, pass by pass, kept on disk lot by lot."""
    from prism_cli.evaluation.sampling import end_tokens
    from prism_cli.models import multimodal

    size = VLLM_LOT if isinstance(engine, VLLMEngine) else recipe.batch_size
    ends = end_tokens(policy.model, policy.processor.tokenizer)
    done = _whole_lots(partial, wanted[0].label, len(rows), size)
    _check_same_rows(partial.parent, [said["id"] for said in done], (list(rows["id"]) * len(wanted))[: len(done)])
    with progress(label, len(wanted) * len(rows)) as on_progress, open(partial, "a", encoding="utf-8") as file:
        on_progress(len(done))
        for one, start in _lots(wanted, len(rows), size):
            if len(done) > wanted.index(one) * len(rows) + start:
                continue
            lot = [rows[i] for i in range(start, min(start + size, len(rows)))]
            before = len(done)
            said = sample(
                [multimodal(row["prompt"], row["images"]) for row in lot],
                temperature=one.temperature,
                seed=one.seed + start,
                on_batch=lambda more, before=before: on_progress(before + more),
            )
            for row, response in zip(lot, said, strict=True):
                cut = bool(response.token_ids) and response.token_ids[-1] not in ends
                told = {"text": response.text, "length": len(response.token_ids), "truncated": float(cut)}
                told = told if response.failed is None else {"failed": response.failed}
                done.append({"id": row["id"], "pass": one.label, **told})
            file.writelines(f"{json.dumps(line)}\n" for line in done[-len(lot) :])
            file.flush()
            on_progress(len(done))
    return done


def _check_same_rows(folder: Path, answered: Sequence[str], asked: Sequence[str]) -> None:
    if list(answered) != list(asked):
        raise CheckpointError(
            f"{folder} has answers to other rows than its data has now",
            "start over with --fresh, or put the data back as it was",
        )


def _lots(wanted: Sequence[Pass], questions: int, size: int) -> Iterator[tuple[Pass, int]]:
    return ((one, start) for one in wanted for start in range(0, questions, size))


def _whole_lots(partial: Path, first: str, questions: int, size: int) -> list[Line]:
    """What an earlier start has of them; a lot that a kill cut off is asked again."""
    there = read_lines(partial) if partial.exists() else []
    if there and there[0]["pass"] != first:
        there = []  # they stand in the samples file: a kill came between writing that and removing this one
    whole, rest = divmod(len(there), questions)
    kept = there[: whole * questions + rest // size * size]
    write_atomically(partial, "".join(f"{json.dumps(line)}\n" for line in kept))
    return kept


def _by_question(before: Sequence[Line], found: Sequence[Line], questions: int) -> list[list[Line]]:
    """Question → its responses, the greedy one first; earlier ones without what was found of them."""

    def plain(said: Line) -> Line:
        return {key: said[key] for key in ("text", "length", "truncated", "failed") if key in said}

    kinds = ("greedy", "samples")
    old = [[said for kind in kinds for said in responses_of(line, kind)] for line in before or [{}] * questions]
    return [[plain(said) for said in (*earlier, *found[i::questions])] for i, earlier in enumerate(old)]


# What is found of them -----------------------------------------------------------------------------------------------


def teacher_texts(recipe: EvalRecipe, run: Run, policy: "Policy", rows: "Dataset") -> list[str | None] | None:
    """The teacher's answers, None for questions it failed on; None without a teacher."""
    if recipe.teacher is None:
        return None
    origin = {"instruction": policy.instruction, "data": recipe.data}
    with open_teacher(recipe.teacher, policy.grammar, run, rows, **origin) as desk:
        return desk.answers([{"id": id} for id in rows["id"]])


def _judge(
    recipe: EvalRecipe,
    run: Run,
    policy: "Policy",
    rows: "Dataset",
    taught: Sequence[str | None] | None,
    lines: Sequence[Line],
) -> None:
    """Adds to each response its verdicts, each 0 or 1."""
    from prism_cli.assembly.llm_judge import open_llm_judge
    from prism_cli.rewards.verdict import Accuracy

    asked = [
        {"prompt": prompt, "answers": answers} for prompt, answers in zip(rows["prompt"], rows["answers"], strict=True)
    ]
    every = [
        (index, said)
        for index, line in enumerate(lines)
        for kind in ("greedy", "samples")
        for said in responses_of(line, kind)
    ]
    whole = [(index, said, policy.grammar.parse(said["text"])) for index, said in every if "failed" not in said]
    if not whole:
        reasons = ", ".join(sorted({said["failed"] for _, said in every})[:3])
        raise PrismError(f"every request for a response failed: {reasons}", "see what generates: generation.engine")
    llm_judge = recipe.llm_judge
    with nullcontext() if llm_judge is None else open_llm_judge(llm_judge, run.folder, "llm_judge") as ask:
        accuracy = Accuracy(ask)
        accuracy.prepare([(response, asked[i], said["length"]) for i, said, response in whole if asked[i]["answers"]])
    others = _other_verdicts(recipe, policy, rows, taught)
    for index, said, response in whole:
        verdicts = _right(accuracy, response, asked[index], said["length"]) | others(index, response)
        plain = dict(said)
        said.clear()
        said.update({"text": plain.pop("text"), **verdicts, **plain})


def _right(accuracy: "Accuracy", response: Response, row: Mapping[str, Any], length: int) -> dict[str, Any]:
    if not row["answers"]:
        return {}
    verdict = accuracy(response, dict(row), length)
    return {"unjudged": True} if verdict is None else {"accuracy": verdict}


def _other_verdicts(
    recipe: EvalRecipe, policy: "Policy", rows: "Dataset", taught: Sequence[str | None] | None
) -> Callable[[int, Response], dict[str, float]]:
    """A function of a row's index and a response that gives what needs no accepted answer."""
    questions, truths = [prompt[-1]["content"] for prompt in rows["prompt"]], rows["truth"]
    place = world(recipe.data.world) if isinstance(recipe.data, WorldData) else None
    captions = [_caption(policy.grammar.parse(text or "")) for text in taught] if taught else None

    def verdicts(index: int, response: Response) -> dict[str, float]:
        found = {"well_formed": float(response.well_formed)}
        if place is not None:
            known = place.judge(response.blocks, questions[index], truths[index])
            found |= {part: float(known[part]) for part in ("perception", "reasoning")}
        if captions is not None and captions[index] is not None:
            found["caption_distance"] = float(_caption(response) != captions[index])
        return found

    return verdicts


def _caption(response: Response) -> str | None:
    """The first part's text when there are several parts; None when malformed or there is but one part."""
    return next(iter(response.parts.values())) if len(response.parts) > 1 else None


def _add_likelihoods(
    recipe: EvalRecipe,
    policy: "Policy",
    rows: "Dataset",
    taught: Sequence[str | None],
    lines: list[Line],
    before: Sequence[Line],
) -> None:
    """Adds to each question how likely the policy finds the teacher's answer."""
    from prism_cli.evaluation.sampling import log_likelihoods
    from prism_cli.models import device, multimodal

    for line, old in zip(lines, before, strict=False):
        line |= {key: value for key, value in old.items() if key.startswith(TEACHER_LOGPROB)}
    known = [i for i, text in enumerate(taught) if text is not None and TEACHER_LOGPROB not in lines[i]]
    policy.model.to(device())
    for start in range(0, len(known), recipe.batch_size):
        batch = known[start : start + recipe.batch_size]
        texts = [taught[i] or "" for i in batch]
        heard = [multimodal(rows[i]["prompt"], rows[i]["images"]) for i in batch]
        values = log_likelihoods(policy.model, policy.processor, heard, texts, recipe.batch_size)
        for index, text, of_tokens in zip(batch, texts, values, strict=True):
            lines[index] |= _teacher_logprob(policy, text, of_tokens)


def _teacher_logprob(policy: "Policy", text: str, of_tokens: list[float]) -> dict[str, float]:
    """Means over the tokens of an answer and of each of its parts, where it has the form of the policy's responses."""
    tokenizer = policy.processor.tokenizer
    pieces = token_pieces(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    places = policy.grammar.split_token_ids(range(len(pieces)), pieces) or {}
    found = {TEACHER_LOGPROB: fmean(of_tokens)}
    if len(places) > 1:
        found |= {f"{TEACHER_LOGPROB}/{part}": fmean(of_tokens[i] for i in at) for part, at in places.items()}
    return found
