"""Numbers as people write them, with units: "1,234", "3/4", "2 1/2", "1.5×10^3", "50 %", "$5 million", "9.8 m/s^2"."""

import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

RELATIVE_TOLERANCE = 1e-6

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "d": 1e-1, "c": 1e-2, "m": 1e-3, "µ": 1e-6, "n": 1e-9}
_PREFIXED = {
    "m": ("length", 1.0), "g": ("mass", 1e-3), "s": ("time", 1.0), "L": ("volume", 1.0), "W": ("power", 1.0),
    "J": ("energy", 1.0), "N": ("force", 1.0), "V": ("voltage", 1.0), "A": ("current", 1.0), "Ω": ("resistance", 1.0),
    "Hz": ("frequency", 1.0), "Pa": ("pressure", 1.0), "mol": ("amount", 1.0),
}  # fmt: skip
_PLAIN = {
    "in": ("length", 0.0254), "ft": ("length", 0.3048), "yd": ("length", 0.9144), "mi": ("length", 1609.344),
    "lb": ("mass", 0.45359237), "oz": ("mass", 0.028349523125), "t": ("mass", 1000.0),
    "min": ("time", 60.0), "h": ("time", 3600.0), "day": ("time", 86400.0), "week": ("time", 604800.0),
    "°": ("angle", 1.0), "°C": ("celsius", 1.0), "°F": ("fahrenheit", 1.0), "%": ("percent", 1.0),
    "$": ("dollar", 1.0), "cent": ("dollar", 0.01), "€": ("euro", 1.0), "£": ("pound sterling", 1.0), "¥": ("yen", 1.0),
}  # fmt: skip
_UNITS = {prefix + unit: (kind, scale * size) for unit, (kind, size) in _PREFIXED.items()
          for prefix, scale in _PREFIXES.items()} | _PLAIN  # fmt: skip
_NAMES = {
    "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "kilo": "kg", "milligram": "mg", "pound": "lb", "ounce": "oz",
    "ton": "t", "tonne": "t", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "L",
    "litre": "L", "l": "L", "ml": "mL", "milliliter": "mL", "millilitre": "mL", "watt": "W", "joule": "J",
    "newton": "N", "volt": "V", "ampere": "A", "amp": "A", "ohm": "Ω", "hertz": "Hz", "pascal": "Pa", "degree": "°",
    "deg": "°", "percent": "%", "dollar": "$", "usd": "$", "euro": "€", "yen": "¥",
}  # fmt: skip
_UP_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: i for i, word in enumerate(_UP_TO_TWENTY.split())} | {
    word: 10 * i for i, word in enumerate(_TENS.split(), start=3)
}
_MULTIPLES = {"dozen": 12, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
# Words that make "5 …" something else than five of a kind: hedges, negations, functions.
_NOT_UNITS = "or and to not but than from of is are sin cos tan log sqrt pi the maybe more less about plus minus times"

_INTEGER = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?:[ ]\d{3})+|\d+"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\ ?(?P<currency>[$€£¥]?)\ ?
    (?:(?P<mixed>\d+)\ +(?P<above>\d+)/(?P<below>\d+)
      |(?P<over>\d+(?:\.\d+)?)\ ?/\ ?(?P<under>\d+(?:\.\d+)?)
      |(?P<decimal>(?:{_INTEGER})(?:\.\d*)?|\.\d+)(?:\ ?(?:[eE]|(?:x|\*)\ ?10\^)\ ?\(?(?P<exponent>[-+]?\d{{1,2}})\)?)?
      |(?P<word>{"|".join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])
      )(?![\d/^.])""",
    re.VERBOSE,
)
_UNIT_TERM = re.compile(r"(°[CF]?|[%$€£¥]|[A-Za-zµΩ]+)(?:\^?(-?\d))?")


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


@lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    """The quantity a normalised text spells out, nothing else around it; None when it is not one."""
    found = _NUMBER.match(text) or _NUMBER.match(text.lower())
    if not found:
        return None
    value = _value(found)
    if value is None:
        return None
    attached, unit_text = found.end() < len(text) and text[found.end()] != " ", text[found.end() :].strip()
    first_word, _, rest = unit_text.partition(" ")
    if first_word.lower() in _MULTIPLES:
        value, unit_text, attached = value * _MULTIPLES[first_word.lower()], rest, False
    if found["currency"]:
        return Quantity(value, ((_UNITS[found["currency"]][0], 1),), 1.0) if not unit_text else None
    unit = _unit(unit_text, attached)
    return Quantity(value, *unit) if unit else None


def _value(found: re.Match) -> float | None:
    """The number a match of `_NUMBER` stands for; None for a zero denominator."""
    sign = -1.0 if found["sign"] == "-" else 1.0
    if found["mixed"]:
        if int(found["below"]) == 0:
            return None
        return sign * (int(found["mixed"]) + int(found["above"]) / int(found["below"]))
    if found["over"]:
        return sign * float(found["over"]) / float(found["under"]) if float(found["under"]) else None
    if found["word"]:
        return sign * _WORDS[found["word"]]
    return sign * float(f"{found['decimal'].replace(',', '').replace(' ', '')}e{found['exponent'] or 0}")


def _unit(text: str, attached: bool) -> tuple[tuple[tuple[str, int], ...], float] | None:
    """(kinds with powers, scale) of a unit's text; None when it is no unit."""
    if not text:
        return (), 1.0
    text = re.sub(r"\b(?:square|sq\.?) (\w+)", r"\1^2", text)
    text = re.sub(r"\bcubic (\w+)", r"\1^3", text)
    text = re.sub(r"\bmph\b", "mi/h", text).replace(" per ", "/")
    powers, scale = Counter(), 1.0
    for place, side in enumerate(re.split(r" ?/ ?", text)):
        for term in re.split(r"[ *·]+", side):
            found = _UNIT_TERM.fullmatch(term.rstrip("."))
            known = unit_of(found[1]) if found else None
            if found is None or known is None:
                return None if attached else _counted_things(text)
            power = int(found[2] or 1) * (-1 if place else 1)
            powers[known[0]] += power
            scale *= known[1] ** power
    return tuple(sorted(powers.items())), scale


def unit_of(word: str) -> tuple[str, float] | None:
    """(kind, size in base units) of one known unit, singular, plural or symbol: "kg", "pounds", "°C"."""
    if word in _UNITS:
        return _UNITS[word]
    name = word.lower()
    single = name.removesuffix("s")
    return _UNITS.get(_NAMES.get(name) or _NAMES.get(single) or (single if len(single) > 1 else ""))


def _counted_things(text: str) -> tuple[tuple[tuple[str, int], ...], float] | None:
    """Up to three plain words after a number are what is counted ("5 red apples")."""
    words = text.lower().split()
    if len(words) > 3 or any(not re.fullmatch(r"[a-z]{3,}", word) or word in _NOT_UNITS.split() for word in words):
        return None
    return ((" ".join(word.removesuffix("s") for word in words), 1),), 1.0


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
        return False
    bare, measured = (given, right) if right.unit else (right, given)
    if measured.unit == (("percent", 1),):
        asked = abs(bare.value) > 1 or "percent" in question.lower() or "%" in question
        return _close(measured.value / 100, bare.value) or (asked and _close(measured.value, bare.value))
    return _unit_fits(measured, question) and _close(given.value, right.value)


def _unit_fits(measured: Quantity, question: str) -> bool:
    """False when the question names units of this kind, but not this one ("how many kg" answered in lb)."""
    if len(measured.unit) != 1 or measured.unit[0][1] != 1:
        return True
    # "in", "a", "m" … are words too, so a unit in a question counts from two letters on.
    known = [unit_of(word) for word in re.findall(r"[A-Za-z]{2,}", question) if word != "in"]
    sizes = [size for kind, size in filter(None, known) if kind == measured.unit[0][0]]
    return not sizes or any(_close(size, measured.scale) for size in sizes)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= RELATIVE_TOLERANCE * abs(b)
