"""One value against one value: coordinates and intervals, ranges, quantities, yes or no, words, mathematics."""

import re

from prism_cli.rewards.mathematics import same_mathematics
from prism_cli.rewards.quantities import read_quantity, same_quantity
from prism_cli.rewards.texts import same_polarity, same_text

_NAME = re.compile(
    r"^((?:point |vertex )?\(?[A-Za-z](?:[\w']|, ?[A-Za-z])*\)?|(?:m ?)?(?:\\angle|\\triangle) ?\w+|\\[a-z]+"
    r"|[A-Za-z]{1,2} ?: ?[A-Za-z]{1,2}"
    r"|[A-Z][A-Z]+)\s*(?:=|\\in(?![a-z])|\\approx)\s*(?=[^=])"
)
_POINT = re.compile(r"^((?:point )?[A-Z])\s?(?=\([^()]*,[^()]*\)$)")
_SENTENCE = re.compile(
    r"^((?:the|this|that|these|those|there|it|they|its|he|she|his|her|we|in|[A-Z][\w']*)\b(?: [\w'°\\^{}()-]+){0,8}?"
    r" (?:is|are|was|were|equals|has|have|shows|measures)(?: equal to)?|it's|that's|we (?:get|have)) (?=\S)",
    re.IGNORECASE,
)
# A clause with one of these states something else than its last words.
_UNSTATED = re.compile(
    r"\b(?:yes|not|no|whether|if|unclear|unsure|neither|nor|or|either|maybe|might|could|never|than|false)\b", re.I
)
_TUPLE = re.compile(r"([(\[])((?:[^()\[\]]*,)+[^()\[\]]*)([)\]])")
_AND = re.compile(r",? and (?=[xyz] ?=)")
_LESS = r"(<=|<|\\leq?(?![a-z])|\\lt(?![a-z]))"
_MORE = r"(>=|>|\\geq?(?![a-z])|\\gt(?![a-z]))"
_BETWEEN = re.compile(rf"([^<>=\\]+) ?{_LESS} ?[a-zA-Z] ?{_LESS} ?([^<>=\\]+)")
_RANGE = re.compile(
    r"(?:(?:from|between) )?([$€£¥]?\d[\d,.]*)( ?[A-Za-z%°]*) ?(?:-|to|and) ?([$€£¥]?\d[\d,.]*)( ?[A-Za-z%° ]*)"
)


def same_value(answer: str, reference: str, question: str = "") -> bool | None:
    """Whether two values are the same, by the first family that knows what they are."""
    if any(map(_swapped, (answer, reference))) and any(map(_TUPLE.fullmatch, (answer, reference))):
        return False
    answer, reference = _without_name(answer, reference)
    for family in (same_tuple, same_range, same_quantity, same_polarity, same_text, same_mathematics):
        verdict = family(answer, reference, question)
        if verdict is not None:
            return verdict
    return False


def _without_name(answer: str, reference: str) -> tuple[str, str]:
    """Drops "x =" or "The sum is" where only one side has it, or both the same."""
    (given, a), (wanted, b) = _named(answer), _named(reference)
    return (answer, reference) if given and wanted and given.casefold() != wanted.casefold() else (a, b)


def _named(text: str) -> tuple[str, str]:
    """The name a text gives its value ("" for none), and the value."""
    found = _NAME.match(text) or _POINT.match(text) or _SENTENCE.match(text)
    if not found or _UNSTATED.search(found[1]):
        return "", text
    return found[1], text[found.end() :].strip()


def same_tuple(answer: str, reference: str, question: str = "") -> bool | None:
    """Coordinates and intervals: entries in order, brackets alike (a bare list may stand for round ones)."""
    sides = [_as_interval(side) for side in (answer, reference)]
    if any(map(_TUPLE.fullmatch, sides)):
        sides = [_ray(side) for side in sides]
    pair = [_TUPLE.fullmatch(side) for side in sides]
    if not any(pair):
        return None
    sides = [side if found else _AND.sub(", ", side) for found, side in zip(pair, sides, strict=True)]
    brackets = {found[1] + found[3] if found else "()" for found in pair}
    entries = [(found[2] if found else side).split(",") for found, side in zip(pair, sides, strict=True)]
    if len(brackets) > 1 or len(entries[0]) != len(entries[1]):
        return False
    return all(same_value(a.strip(), b.strip(), question) for a, b in zip(*entries, strict=True))


def _swapped(text: str) -> bool:
    """Whether coordinates are named in another order than theirs: "y = 2, x = 1"."""
    names = re.findall(r"(?:^|[,( ])([xyz]) ?=", text)
    return names != sorted(names)


def _as_interval(text: str) -> str:
    r""" "1 < x \le 2" as "(1, 2]"."""
    found = _BETWEEN.fullmatch(text)
    if not found:
        return text
    ends = ["<" if found[i] in ("<", r"\lt") else "=" for i in (2, 3)]
    return f"{'(' if ends[0] == '<' else '['}{found[1].strip()}, {found[4].strip()}{')' if ends[1] == '<' else ']'}"


def _ray(text: str) -> str:
    r""" "x \le 3" or "3 \ge x" as "(-\infty, 3]"."""
    found = re.fullmatch(
        rf"(?:[a-zA-Z] ?(?:{_LESS}|{_MORE}) ?([^<>=\\]+)|([^<>=\\]+) ?(?:{_LESS}|{_MORE}) ?[a-zA-Z])", text
    )
    if not found:
        return text
    less, end = found[1] or found[6], (found[3] or found[4]).strip()
    closed = (found[1] or found[2] or found[5] or found[6]) not in ("<", ">", r"\lt", r"\gt")
    if less:
        return rf"(-\infty, {end}{']' if closed else ')'}"
    return rf"{'[' if closed else '('}{end}, \infty)"


def same_range(answer: str, reference: str, question: str = "") -> bool | None:
    """Ranges ("10-20 years", "10 to 20 years", "between 10 and 20"); None when the reference is none."""
    wanted, given = _range(reference), _range(answer)
    if wanted is None:
        return None
    if given is None:
        # "10-20" isn't a subtraction that somebody else carried out; "a and b" may be two values.
        return None if " and " in reference else same_text(answer, reference) or False
    return all(same_quantity(a, b, question) for a, b in zip(given, wanted, strict=True))


def _range(text: str) -> tuple[str, str] | None:
    found = _RANGE.fullmatch(text)
    if not found or (" and " in text and not text.startswith("between")):
        return None
    low, high = found[1] + (found[2].rstrip() or found[4]), found[3] + found[4]
    values = [read_quantity(end) for end in (low, high)]
    if values[0] is None or values[1] is None or not values[0].value < values[1].value:
        return None
    return low, high
