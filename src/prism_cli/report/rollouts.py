"""Rollouts of logged steps, a card a prompt: the question, the responses, their rewards or scores."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.report.quantities import is_number
from prism_cli.report.showcase import MALFORMED, TEACHER, Card, Side, is_right, read, shortened
from prism_cli.responses import Response


class Frame(NamedTuple):
    """The rollouts of one logged step.

    Attributes:
        step: Which one.
        cards: Its prompts.
    """

    step: str
    cards: list[Card]


def thinned(rows: Sequence[Mapping[str, Any]], budget: int) -> list[Mapping[str, Any]]:
    """Evenly spread lines, the first and the last among them, that take no more characters than that on the page."""
    sizes = [len(json.dumps(row)) for row in rows]
    stride = 1
    while True:
        kept = sorted(set(range(0, len(rows), stride)) | ({len(rows) - 1} if rows else set()))
        if len(kept) <= 2 or sum(sizes[i] for i in kept) <= budget:
            return [rows[i] for i in kept]
        stride += 1


def frames(
    rows: Sequence[Mapping[str, Any]],
    parse: Callable[[str], Response] | None,
    is_correct: Callable[[str, Sequence[str], str], bool] | None,
) -> list[Frame]:
    """One frame a line of rollouts.jsonl."""
    return [
        Frame(str(row.get("step", "–")), [_card(prompt, parse, is_correct) for prompt in _objects(row.get("prompts"))])
        for row in rows
    ]


def _card(prompt: Mapping[str, Any], parse: Callable | None, is_correct: Callable | None) -> Card:
    question = shortened(str(prompt.get("question") or ""))
    answers = [str(answer) for answer in _list(prompt.get("answers"))]
    verdict = is_right(is_correct, answers, question)
    sides = [
        _rollout(number, rollout, parse, verdict)
        for number, rollout in enumerate(_objects(prompt.get("rollouts")), 1)
        if isinstance(rollout.get("text"), str)
    ]
    if isinstance(taught := prompt.get("teacher"), str):
        blocks, marks = read(taught, parse, verdict)
        sides.insert(0, Side(TEACHER, blocks, marks, []))
    images = [image for image in _list(prompt.get("images")) if isinstance(image, str)]
    right = shortened(" or ".join(answers))
    return Card(question, right, images, bool(prompt.get("image_dropped")), sides, str(prompt.get("source") or ""))


def _rollout(number: int, rollout: Mapping[str, Any], parse: Callable | None, verdict: Callable | None) -> Side:
    rewards = rollout.get("rewards")
    rewards = rewards if isinstance(rewards, Mapping) else {}
    # Judging takes time where answers are formulas: only where no reward says it.
    is_known = "problem" in rollout and "accuracy" in rewards
    blocks, marks = read(rollout["text"], parse, None if is_known else verdict)
    if "problem" in rollout:
        # The policy's reward counts, whatever one would say today, or of a text that was cut to be kept.
        marks = _marks(rollout["problem"], rewards, marks)
    shown = [(str(name), _worth(value)) for name, value in rewards.items()]
    if is_number(length := rollout.get("length")):
        shown.append(("tokens", str(length)))
    return Side(f"Rollout {number}", blocks, marks, shown, "policy")


def _marks(problem: Any, rewards: Mapping[str, Any], judged: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Well-formed or why not; right or wrong by the reward it was given, else as it is judged now."""
    if problem is not None:
        return [(f"{MALFORMED}: {shortened(str(problem), 400)}", "bad")]
    if "accuracy" not in rewards:
        return [("well-formed", "good"), *judged[1:]]
    accuracy = rewards["accuracy"]
    verdict = ("right" if accuracy >= 1 else "wrong") if is_number(accuracy) else "unscored"
    return [("well-formed", "good"), (verdict, {"right": "good", "wrong": "bad"}.get(verdict, ""))]


def _worth(value: Any) -> str:
    return f"{value:.3g}".replace("-", "−") if is_number(value) else "–"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in _list(value) if isinstance(one, Mapping)]
