"""Numbers as people write them, with units: "1,234", "1.234,5", "3/4", "2 1/2", "1.5×10^3", "50 %", "2 h 30 min"."""

import re
from functools import lru_cache
from typing import NamedTuple

from prism_cli.rewards.units import read_unit, same_things, unit_of, units_named

RELATIVE_TOLERANCE = 1e-6

_UP_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: i for i, word in enumerate(_UP_TO_TWENTY.split())} | {
    word: 10 * i for i, word in enumerate(_TENS.split(), start=3)
}
_MULTIPLES = {"dozen": 12, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_PARTS = {
    "half": 2,
    "halve": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_SHORT_MULTIPLES = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "bn": 1e9}
_COUNTING_WORD = rf"(?:{'|'.join(sorted([*_WORDS, *_MULTIPLES], key=len, reverse=True))})(?![a-z])"
_POINT = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:[ ]\d{3})+|\d+)(?:\.\d*)?|\.\d+"
# Only what can't be read otherwise: "1.234,5" and "1.234.567", but not "1,5" (two values) nor "1.234".
_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+(?!,)|\d{1,3}(?:\.\d{3}){2,}(?!\.)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]|minus\ |negative\ )?\ ?(?P<currency>(?:US|A|C|HK)?\$|[€£¥₹])?\ ?(?P<inner>-?)
    (?:(?P<mixed>\d+)\ +(?:and\ )?(?P<above>\d+)/(?P<below>\d+)
      |(?P<parts>(?:{_COUNTING_WORD}[ -]|an?\ )?)(?P<part>{"|".join(_PARTS)})s?(?![a-z])
      |(?P<over>\d+(?:\.\d+)?)\ ?/\ ?(?P<under>\d+(?:\.\d+)?)
      |(?P<european>{_EUROPEAN})
      |(?P<decimal>{_POINT})(?:\ ?(?:[eE]|(?:x|\*)\ ?10\^)\ ?\(?(?P<exponent>[-+]?\d{{1,2}})\)?)?
      |(?P<word>(?:(?:an?\ )(?=dozen|hundred|thousand|million|billion))?{_COUNTING_WORD}
          (?:(?:[ -]|\ and\ ){_COUNTING_WORD})*)
      )(?![\d/^.])""",
    re.VERBOSE,
)
_TWICE = re.compile(r"([^()]+) \(([^()]+)\)")  # "2 (two)"
_DECADE = re.compile(r"[12]\d\d0'?s")
_COMPOUND = re.compile(r"(-?\d+(?:\.\d+)?) ?([A-Za-z°'\"]+)(?:,? and |,? ?)(\d+(?:\.\d+)?) ?([A-Za-z'\"]+)")


class Quantity(NamedTuple):
    """A number and what it counts.

    Attributes:
        value: The number as written ("50 %" is 50).
        unit: (kind, power) pairs in a fixed order; empty for a bare number.
        scale: How many base units one of these is (km: 1000).
    """

    value: float
    unit: tuple[tuple[str, int], ...]
    scale: float


@lru_cache(maxsize=16384)
def read_quantity(text: str) -> Quantity | None:
    """The quantity a normalised text spells out, nothing else around it; None when it is not one."""
    text = re.sub(r"^\((-?[\d.]+)\)$", r"\1", text)
    if (twice := _TWICE.fullmatch(text)) and (first := read_quantity(twice[1])):
        return first if first == read_quantity(twice[2]) else None
    found = _NUMBER.match(text) or _NUMBER.match(text.lower())
    value = _value(found) if found else None
    if not found or value is None:
        return None
    attached, unit_text = found.end() < len(text) and text[found.end()] != " ", text[found.end() :].strip()
    first_word, _, rest = unit_text.partition(" ")
    if first_word.lower() in _MULTIPLES:
        value, unit_text, attached = value * _MULTIPLES[first_word.lower()], rest, False
    if found["currency"]:
        unit = unit_of(found["currency"][-1])
        if unit and unit_text in _SHORT_MULTIPLES:
            value, unit_text = value * _SHORT_MULTIPLES[unit_text], ""
        return Quantity(value, ((unit[0], 1),), unit[1]) if unit and not unit_text else None
    unit = read_unit(unit_text.removeprefix("-") if attached else unit_text, attached and unit_text[0] != "-")
    return Quantity(value, *unit) if unit else _compound(text)


def _compound(text: str) -> Quantity | None:
    """Two units of one kind, the larger first: "2 hours 30 minutes", "5 ft 3 in"."""
    found = _COMPOUND.fullmatch(text)
    if not found:
        return None
    large, small = (unit_of({"'": "ft", '"': "in", "''": "in"}.get(name, name)) for name in (found[2], found[4]))
    if not large or not small or large[0] != small[0] or large[1] <= small[1]:
        return None
    return Quantity(float(found[1]) + float(found[3]) * small[1] / large[1], ((large[0], 1),), large[1])


def _value(found: re.Match[str]) -> float | None:
    """The number a match of `_NUMBER` stands for; None for a zero denominator."""
    sign = -1.0 if (found["sign"] or "")[:1] in ("-", "m", "n") or found["inner"] else 1.0
    if found["mixed"]:
        below = int(found["below"])
        return sign * (int(found["mixed"]) + int(found["above"]) / below) if below else None
    if found["over"]:
        return sign * float(found["over"]) / float(found["under"]) if float(found["under"]) else None
    if found["part"]:
        count = found["parts"].strip(" -")
        if not count and found["part"] != "half":
            return None  # "third" by itself is a place
        return sign * _WORDS.get(count, 1) / _PARTS[found["part"]]
    if found["word"]:
        spelled = _spelled(re.findall(r"[a-z]+", found["word"]))
        return None if spelled is None else sign * spelled
    if found["european"]:
        return sign * float(found["european"].replace(".", "").replace(",", "."))
    return sign * float(f"{found['decimal'].replace(',', '').replace(' ', '')}e{found['exponent'] or 0}")


def _spelled(words: list[str]) -> float | None:
    """ "two hundred and five" → 205; None for a row of words that is no number ("five six")."""
    total, current, last = 0.0, 0.0, ""
    for word in words:
        if word in ("a", "an"):
            current = 1.0
        elif word in _WORDS:
            tens = last in _TENS.split() or last == "twenty"
            if last in _WORDS and not (tens and 0 < _WORDS[word] < 10):
                return None
            current += _WORDS[word]
        elif word in _MULTIPLES:
            current = (current or 1.0) * _MULTIPLES[word]
            if _MULTIPLES[word] >= 1000:
                total, current = total + current, 0.0
        last = word
    return total + current


def same_quantity(answer: str, reference: str, question: str = "") -> bool | None:
    """Whether two texts are the same quantity within a relative 1e-6; None when either is no quantity.

    A unit may be left out on one side, unless the question asks for another unit of that kind. Different units of
    one kind are converted (100 cm = 1 m); a percentage equals its share (50 % = 0.5).
    """
    right, given = read_quantity(reference), read_quantity(answer)
    if right is None or given is None:
        return None
    if right.unit == given.unit:
        return _close(given.value * given.scale, right.value * right.scale)
    if right.unit and given.unit:
        things = len(right.unit) == len(given.unit) == 1 and same_things(right.unit[0][0], given.unit[0][0])
        return things and right.unit[0][1] == given.unit[0][1] and _close(given.value, right.value)
    bare, measured = (given, right) if right.unit else (right, given)
    if _DECADE.fullmatch(reference if right.unit else answer) and not _names_time(question):
        return False
    if measured.unit == (("percent", 1),):
        asked = abs(bare.value) > 1 or "percent" in question.lower() or "%" in question
        return _close(measured.value / 100, bare.value) or (asked and _close(measured.value, bare.value))
    return _unit_fits(measured, question) and _close(given.value, right.value)


def _unit_fits(measured: Quantity, question: str) -> bool:
    """False when the question names units of this kind, but not this one ("how many kg" answered in lb)."""
    if len(measured.unit) != 1 or measured.unit[0][1] != 1:
        return True
    sizes = [size for kind, size in units_named(question) if kind == measured.unit[0][0]]
    return not sizes or any(_close(size, measured.scale) for size in sizes)


def _names_time(question: str) -> bool:
    return any(kind == "time" for kind, _ in units_named(question))


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= RELATIVE_TOLERANCE * abs(b)
