"""Units as people write them: "kg", "square centimeters", "m/s^2", "°C", "厘米", and plain things ("5 red apples")."""

import re
from collections import Counter
from functools import lru_cache

Unit = tuple[tuple[tuple[str, int], ...], float]
"""(kind, power) pairs in a fixed order, empty for none; and how many base units one of these is (km: 1000)."""

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "d": 1e-1, "c": 1e-2, "m": 1e-3, "µ": 1e-6, "n": 1e-9}
_PREFIXED = {
    "m": ("length", 1.0), "g": ("mass", 1e-3), "s": ("time", 1.0), "L": ("volume", 1.0), "W": ("power", 1.0),
    "J": ("energy", 1.0), "N": ("force", 1.0), "V": ("voltage", 1.0), "A": ("current", 1.0), "Ω": ("resistance", 1.0),
    "Hz": ("frequency", 1.0), "Pa": ("pressure", 1.0), "mol": ("amount", 1.0), "B": ("data", 8.0), "eV": ("eV", 1.0),
    "C": ("charge", 1.0), "F": ("capacitance", 1.0), "T": ("flux density", 1.0), "cal": ("calorie", 1.0),
    "Wh": ("energy", 3600.0), "bit": ("data", 1.0), "b": ("data", 1.0),
}  # fmt: skip
_PLAIN = {
    "in": ("length", 0.0254), "ft": ("length", 0.3048), "yd": ("length", 0.9144), "mi": ("length", 1609.344),
    "lb": ("mass", 0.45359237), "oz": ("mass", 0.028349523125), "t": ("mass", 1000.0), "K": ("kelvin", 1.0),
    "min": ("time", 60.0), "h": ("time", 3600.0), "day": ("time", 86400.0), "week": ("time", 604800.0),
    "month": ("months", 1.0), "year": ("months", 12.0), "ha": ("hectare", 1.0), "acre": ("acre", 1.0),
    "gal": ("gallon", 1.0), "unit": ("unit", 1.0), "°": ("angle", 1.0), "rad": ("radian", 1.0), "°C": ("celsius", 1.0),
    "°F": ("fahrenheit", 1.0), "%": ("percent", 1.0), "$": ("dollar", 1.0), "cent": ("dollar", 0.01),
    "¢": ("dollar", 0.01), "€": ("euro", 1.0), "£": ("pound sterling", 1.0), "¥": ("yen", 1.0), "₹": ("rupee", 1.0),
}  # fmt: skip
_UNITS = {prefix + unit: (kind, scale * size) for unit, (kind, size) in _PREFIXED.items()
          for prefix, scale in _PREFIXES.items()} | _PLAIN  # fmt: skip
_NAMES = {
    "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "kilo": "kg", "milligram": "mg", "pound": "lb", "ounce": "oz",
    "ton": "t", "tonne": "t", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "L",
    "litre": "L", "l": "L", "ml": "mL", "milliliter": "mL", "millilitre": "mL", "watt": "W", "kilowatt": "kW",
    "joule": "J", "kilojoule": "kJ", "newton": "N", "volt": "V", "ampere": "A", "amp": "A", "ohm": "Ω", "hertz": "Hz",
    "pascal": "Pa", "degree": "°", "deg": "°", "celsius": "°C", "fahrenheit": "°F", "kelvin": "K", "radian": "rad",
    "percent": "%", "dollar": "$", "usd": "$", "us$": "$", "euro": "€", "eur": "€", "yen": "¥", "rupee": "₹",
    "yr": "year", "gallon": "gal", "byte": "B", "calorie": "cal", "kilocalorie": "kcal", "hectare": "ha",
    "米": "m", "厘米": "cm", "毫米": "mm", "千米": "km", "公里": "km", "克": "g", "千克": "kg", "公斤": "kg",
    "秒": "s", "分钟": "min", "小时": "h", "天": "day", "度": "°", "年": "year", "岁": "year",
}  # fmt: skip
# Words that make "5 …" something else than five of a kind: hedges, negations, functions.
_NOT_THINGS = (
    "or and to not but than from of is are sin cos tan log sqrt pi the maybe more less about plus minus times x"
)
_TERM = re.compile(r"(°[CF]?|[%$€£¥₹¢]|[A-Za-zµΩ]+|[\u4e00-\u9fff]+)(?:\^?(-?\d))?")
_DEGREES_OF = re.compile(r"\bdegrees? (?=celsius|fahrenheit|[CF]\b)", re.IGNORECASE)
_ASIDE = re.compile(r" (?:old|long|tall|wide|high|deep|each|away|ago)$")


@lru_cache(maxsize=4096)
def read_unit(text: str, attached: bool = False) -> Unit | None:
    """The unit a text spells out; None when it is no unit.

    Args:
        text: What follows a number.
        attached: Whether no blank parts it from the number: then plain things don't count ("5x" is a product).
    """
    if not text:
        return (), 1.0
    text = _ASIDE.sub("", _DEGREES_OF.sub("", text)).replace("{", "").replace("}", "")
    text = re.sub(r"\b(?:square|sq\.?) (\w+)", r"\1^2", text)
    text = re.sub(r"\bcubic (\w+)", r"\1^3", text).replace("平方", "square ").replace("立方", "cubic ")
    text = re.sub(r"square (\S+)", r"\1^2", text)
    text = re.sub(r"cubic (\S+)", r"\1^3", text)
    text = re.sub(r"\bmph\b", "mi/h", text).replace(" per ", "/")
    text = re.sub(r"\b(?:kph|kmh)\b", "km/h", text)
    powers, scale = Counter(), 1.0
    for place, side in enumerate(re.split(r" ?/ ?", text)):
        for term in re.split(r"[ *·]+|\\cdot ", side):
            found = _TERM.fullmatch(term.rstrip("."))
            known = unit_of(found[1]) if found else None
            if found is None or known is None:
                return _counted_things(text) if not attached or not text.isascii() else None
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


def same_things(first: str, second: str) -> bool:
    """Whether two kinds are the same things, one named more closely ("blue bar", "bar")."""
    return first == second or first.endswith(" " + second) or second.endswith(" " + first)


def units_named(text: str) -> list[tuple[str, float]]:
    """(kind, size) of each unit a question names; from two letters on, as "m", "a" and "in" are words too."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    return [known for word in words if word != "in" and (known := unit_of(word))]


def _counted_things(text: str) -> Unit | None:
    """Up to three plain words after a number are what is counted ("5 red apples", "5个苹果")."""
    words = text.lower().split()
    if words == ["times"]:
        return (("time ", 1),), 1.0
    if len(words) > 3 or any(
        not re.fullmatch(r"[a-z]{3,}|[\u4e00-\u9fff]{1,4}", word) or word in _NOT_THINGS.split() for word in words
    ):
        return None
    return ((" ".join(word.removesuffix("s") for word in words), 1),), 1.0
