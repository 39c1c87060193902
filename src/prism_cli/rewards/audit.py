"""The audit of rewards: their values on texts of known worth, so that no reward can be had for nothing."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.responses import Grammar, Response
from prism_cli.rewards.accuracy import MAX_LENGTH
from prism_cli.rewards.choices import options_of

# Gives the rewards of responses to rows, the third argument being lengths: name → a value each, None where unscored.
Score = Callable[[Sequence[Response], Sequence[dict[str, Any]], Sequence[int]], Mapping[str, Sequence[float | None]]]

REFERENCE, TEACHER = "the reference itself", "the teacher's own answers"
_EMPTY = ("an empty response", "an empty answer block")
_FILLER = "something"
_OTHERS = 3
_QUANTITY = re.compile(r"([-+]?\d[\d.,]*)\s*([^\W\d_]+\.?|%|°[CF]?)")
_OTHER_UNIT = {
    "kg": "lb", "lb": "kg", "g": "kg", "cm": "m", "mm": "cm", "m": "cm", "km": "m", "s": "min", "min": "h", "h": "min",
    "°C": "°F", "°F": "°C", "°": "rad", "%": "kg", "l": "ml", "ml": "l",
}  # fmt: skip


class Example(NamedTuple):
    """A text that was scored.

    Attributes:
        row: Id of its data row.
        answer: The final answer; "" when malformed.
        reference: The row's first accepted answer.
        problem: Why it is malformed, else None.
    """

    row: str
    answer: str
    reference: str
    problem: str | None


class Case(NamedTuple):
    """The rewards of one kind of text.

    Attributes:
        name: The kind.
        rows: Rows that have such a text.
        expected: What accuracy must be, or None where it may be either.
        means: Reward → its mean over what is scored, or None where nothing is.
        unscored: Rows whose accuracy is left open.
        surprises: Texts whose accuracy is not the expected one.
    """

    name: str
    rows: int
    expected: float | None
    means: dict[str, float | None]
    unscored: int
    surprises: list[Example]


class Audit(NamedTuple):
    """The result of an audit.

    Attributes:
        rows: Rows looked at.
        cases: One a kind of text, in the order of the table.
    """

    rows: int
    cases: list[Case]

    def case(self, name: str) -> Case:
        """The case of this name."""
        return next(case for case in self.cases if case.name == name)

    def problems(self, max_wrong: float) -> list[str]:
        """The reasons why training should not start.

        Args:
            max_wrong: Largest share of the teacher's answers that may be judged wrong.
        """
        problems = [
            f"accuracy rewards {case.name} on {len(case.surprises)} of {case.rows} rows: {_named(case.surprises)}"
            for case in map(self.case, _EMPTY)
            if case.surprises
        ]
        teacher = self.case(TEACHER)
        if len(teacher.surprises) > max_wrong * teacher.rows:
            malformed = sum(one.problem is not None for one in teacher.surprises)
            of_them = f" ({malformed} for their form)" if malformed else ""
            problems.append(
                f"{len(teacher.surprises)} of {teacher.rows} answers of the teacher are judged wrong{of_them}, more "
                f"than the {max_wrong:.0%} that rewards.max_wrong allows: {_named(teacher.surprises)}"
            )
        return problems


def audit(
    rows: Sequence[dict[str, Any]],
    grammar: Grammar,
    score: Score,
    max_length: int,
    teachers: Sequence[Response | None],
) -> Audit:
    """The rewards of texts of known worth, on every row.

    Lengths are counted in words, but for the over-long answer, which is as long as a response may be.

    Args:
        rows: Rows with `id`, `prompt` and `answers`.
        grammar: The form of a response.
        score: The rewards.
        max_length: Longest response, in tokens.
        teachers: (N,) a teacher's response to each row, parsed; None where it is not known.
    """
    others = list(dict.fromkeys(answer for row in rows for answer in row["answers"][:1]))
    made: list[tuple[str, float | None, Callable[[dict[str, Any]], str | None]]] = [
        (_EMPTY[0], 0.0, lambda row: ""),
        (_EMPTY[1], 0.0, lambda row: _empty_block(grammar)),
        ("all options listed", 0.0, lambda row: _well_formed(grammar, _all_options(row, others))),
        ("the question copied", 0.0, lambda row: _well_formed(grammar, _question(row))),
        ("right answer, wrong tag", 0.0, lambda row: _wrong_tag(grammar, row["answers"][0])),
        ("an over-long answer", 0.0, lambda row: _well_formed(grammar, f"{row['answers'][0]} {'so ' * MAX_LENGTH}")),
        ("the number, another unit", 0.0, lambda row: _well_formed(grammar, _other_unit(row["answers"]))),
        ("the number, no unit", None, lambda row: _well_formed(grammar, _without_unit(row["answers"][0]))),
        (REFERENCE, 1.0, lambda row: _well_formed(grammar, row["answers"][0])),
    ]
    known = [row for row in rows if row["answers"]]
    cases = []
    for name, expected, text_of in made:
        texts = [(row, text) for row in known if (text := text_of(row)) is not None]
        long = max_length if "over-long" in name else None
        cases.append(_scored(name, expected, [(row, grammar.parse(text)) for row, text in texts], score, long))
    taught = [(row, text) for row, text in zip(rows, teachers, strict=True) if text is not None and row["answers"]]
    return Audit(len(rows), [*cases, _scored(TEACHER, 1.0, taught, score)])


def _scored(
    name: str,
    expected: float | None,
    texts: Sequence[tuple[dict[str, Any], Response]],
    score: Score,
    length: int | None = None,
) -> Case:
    rows, responses = [row for row, _ in texts], [response for _, response in texts]
    lengths = [len(response.text.split()) if length is None else length for response in responses]
    values = score(responses, rows, lengths) if texts else {}
    accuracy = values.get("accuracy", ())
    surprises = [
        Example(row["id"], _short(response.answer or ""), row["answers"][0], response.problem)
        for (row, response), value in zip(texts, accuracy, strict=True)
        if expected is not None and value not in (expected, None)
    ]
    unscored = sum(value is None for value in accuracy)
    return Case(name, len(texts), expected, {key: _mean(each) for key, each in values.items()}, unscored, surprises)


def _mean(values: Sequence[float | None]) -> float | None:
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored) if scored else None


def _named(examples: Sequence[Example]) -> str:
    texts = [f"malformed, {one.problem}" if one.problem else repr(one.answer) for one in examples[:3]]
    return "; ".join(
        f"row {one.row}: {text}, reference {one.reference!r}" for one, text in zip(examples, texts, strict=False)
    )


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


# Texts of a row; None where it has none of the kind ---------------------------------------------------------------


def _well_formed(grammar: Grammar, answer: str | None) -> str | None:
    if answer is None:
        return None
    if not grammar.tags:
        return answer
    return grammar.render(dict.fromkeys(grammar.tags, _FILLER) | {grammar.answer_tag or grammar.tags[-1]: answer})


def _empty_block(grammar: Grammar) -> str | None:
    return _well_formed(grammar, "") if grammar.answer_tag else None


def _wrong_tag(grammar: Grammar, answer: str) -> str | None:
    text = _well_formed(grammar, answer)
    return text and grammar.answer_tag and text.replace(f"{grammar.answer_tag}>", "other>")


def _question(row: dict[str, Any]) -> str:
    return row["prompt"][-1]["content"]


def _all_options(row: dict[str, Any], others: Sequence[str]) -> str | None:
    """The options a question lists; where it lists none, the reference among answers to other questions."""
    if options := options_of(_question(row)):
        return " ".join(f"{letter}. {text}" for letter, text in options.items())
    wrong = [answer for answer in others if answer not in row["answers"]][:_OTHERS]
    return "; ".join([*wrong, row["answers"][0]]) if wrong else None


def _other_unit(answers: Sequence[str]) -> str | None:
    match = _QUANTITY.fullmatch(answers[0].strip())
    if not match:
        return None
    changed = f"{match[1]} {_OTHER_UNIT.get(match[2], 'kg')}"
    return changed if changed not in answers else None


def _without_unit(answer: str) -> str | None:
    match = _QUANTITY.fullmatch(answer.strip())
    return match[1] if match else None
