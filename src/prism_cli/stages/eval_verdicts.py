"""Verdicts of `prism eval`: accuracy, form, parts and caption of each response; likelihoods of the teacher's texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from prism_cli.assembly.data import world_of
from prism_cli.assembly.llm_judge import open_llm_judge
from prism_cli.errors import PrismError
from prism_cli.evaluation.answering import KINDS, Line, responses_of
from prism_cli.evaluation.summary import TEACHER_LOGPROB
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.responses import Response, token_pieces
from prism_cli.runs.folder import Run
from prism_cli.worlds import world

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy


class Questions(NamedTuple):
    """The questions of an evaluation.

    Attributes:
        rows: (N,) rows.
        taught: (N,) the teacher's texts, None for questions it failed on; None without a teacher.
    """

    rows: "Dataset"
    taught: Sequence[str | None] | None


def add_verdicts(recipe: EvalRecipe, run: Run, policy: "Policy", questions: Questions, lines: Sequence[Line]) -> None:
    """Adds to each response its verdicts, each 0 or 1.

    Args:
        recipe: The evaluation.
        run: Its folder; the LLM judge's spending counts there.
        policy: Whose responses they are.
        questions: (N,).
        lines: (N,) lines of a samples file.

    Raises:
        PrismError: no request was answered, or the LLM judge failed.
    """
    responses = [
        (index, line, policy.grammar.parse(line["text"])) for index, line in _responses(lines) if "failed" not in line
    ]
    if not responses:
        reasons = ", ".join(sorted({response["failed"] for _, response in _responses(lines)})[:3])
        raise PrismError(f"every request for a response failed: {reasons}", "see what generates: generation.type")
    accuracies = _accuracies(recipe, run, questions.rows, responses)
    others = _other_verdicts(recipe, policy, questions)
    for (index, line, response), accuracy in zip(responses, accuracies, strict=True):
        verdicts = accuracy | others(index, response)
        plain = dict(line)
        line.clear()
        line.update({"text": plain.pop("text"), **verdicts, **plain})


def _responses(lines: Sequence[Line]) -> Iterator[tuple[int, Line]]:
    """(question, response) of all responses."""
    for index, line in enumerate(lines):
        for kind in KINDS:
            for response in responses_of(line, kind):
                yield index, response


def _accuracies(
    recipe: EvalRecipe, run: Run, rows: "Dataset", responses: Sequence[tuple[int, Line, Response]]
) -> list[dict[str, Any]]:
    """Each response's accuracy: {} for a row without answers, `unjudged` where the LLM judge gave no verdict."""
    from prism_cli.rewards.verdict import Accuracy

    known: list[dict[str, Any]] = [
        {"prompt": prompt, "answers": answers} for prompt, answers in zip(rows["prompt"], rows["answers"], strict=True)
    ]
    judged = [(response, known[index], line["length"]) for index, line, response in responses]
    section = recipe.llm_judge
    with nullcontext() if section is None else open_llm_judge(section, "llm_judge", run.folder) as ask:
        accuracy = Accuracy(ask)
        accuracy.prepare([one for one in judged if one[1]["answers"]])
    verdicts = [accuracy(*one) if one[1]["answers"] else None for one in judged]
    return [
        ({"unjudged": True} if verdict is None else {"accuracy": verdict}) if row["answers"] else {}
        for verdict, (_, row, _) in zip(verdicts, judged, strict=True)
    ]


def _other_verdicts(
    recipe: EvalRecipe, policy: "Policy", questions: Questions
) -> Callable[[int, Response], dict[str, float]]:
    """A function of a row's index and a response that gives the verdicts that need no accepted answer."""
    rows, taught = questions
    texts, truths = [prompt[-1]["content"] for prompt in rows["prompt"]], rows["truth"]
    name = world_of(recipe.data)
    place = None if name is None else world(name)
    captions = [_caption(policy.grammar.parse(text or "")) for text in taught] if taught else None

    def verdicts(index: int, response: Response) -> dict[str, float]:
        values = {"well_formed": float(response.well_formed)}
        if place is not None:
            right = place.verdicts(response.blocks, texts[index], truths[index])
            values |= {part: float(right[part]) for part in ("perception", "reasoning")}
        if captions is not None and captions[index] is not None:
            values["caption_distance"] = float(_caption(response) != captions[index])
        return values

    return verdicts


def _caption(response: Response) -> str | None:
    """The first part's text when there are several parts; None when malformed or there is but one part."""
    return next(iter(response.parts.values())) if len(response.parts) > 1 else None


# Likelihoods ---------------------------------------------------------------------------------------------------------


def add_likelihoods(
    policy: "Policy", questions: Questions, lines: Sequence[Line], before: Sequence[Mapping[str, Any]], batch_size: int
) -> None:
    """Adds to each question how likely the policy finds the teacher's text.

    Args:
        policy: Whose likelihood it is.
        questions: (N,); nothing is added where the teacher has no text.
        lines: (N,) lines of a samples file.
        before: (N,) those of an earlier one, whose likelihoods are taken over; or none.
        batch_size: Texts a forward pass.
    """
    from prism_cli.evaluation.sampling import log_likelihoods
    from prism_cli.models import device, multimodal

    for line, old in zip(lines, before, strict=False):
        line |= {key: value for key, value in old.items() if key.startswith(TEACHER_LOGPROB)}
    rows, taught = questions
    texts = {i: text for i, text in enumerate(taught or ()) if text is not None and TEACHER_LOGPROB not in lines[i]}
    policy.model.to(device())
    wanted = list(texts)
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        prompts = [multimodal(rows[i]["prompt"], rows[i]["images"]) for i in batch]
        values = log_likelihoods(policy.model, policy.processor, prompts, [texts[i] for i in batch], batch_size)
        for index, of_tokens in zip(batch, values, strict=True):
            lines[index].update(_teacher_logprob(policy, texts[index], of_tokens))


def _teacher_logprob(policy: "Policy", text: str, of_tokens: list[float]) -> dict[str, float]:
    """Means over the tokens of an answer and of each of its parts, where it has the form of the policy's responses."""
    tokenizer = policy.processor.tokenizer
    pieces = token_pieces(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    places = policy.grammar.split_token_ids(range(len(pieces)), pieces) or {}
    means = {TEACHER_LOGPROB: fmean(of_tokens)}
    if len(places) > 1:
        means |= {f"{TEACHER_LOGPROB}/{part}": fmean(of_tokens[i] for i in at) for part, at in places.items()}
    return means
