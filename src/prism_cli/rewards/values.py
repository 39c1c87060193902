"""Several values: "1; 2", "(1) 5 (2) 7", "red and blue", "x = 1 or x = 2", "±2"."""

import re

from prism_cli.rewards.single import same_value
from prism_cli.rewards.wording import plain

_MARKS = {
    "1 2 3 4 5 6 7 8 9": re.compile(r"(?:^|(?<=[\s;,]))(?:\((\d)\)|(\d)\)(?=\s))\s*"),
    "a b c d e f g h": re.compile(r"(?:^|(?<=[\s;,]))\(?([a-h])\)\s*"),
    "i ii iii iv v vi": re.compile(r"(?:^|(?<=[\s;,]))\((i{1,3}|iv|v|vi)\)\s*"),
}
_ORDER_ASKED = re.compile(
    r"\b(?:order|ascending|descending|sort|rank|sequence|arrange|coordinates?|respectively|left to right|right to left"
    r"|top to bottom|bottom to top|smallest to|largest to)|顺序|依次|分别|从.到.|排列",
    re.IGNORECASE,
)
_SEPARATOR = r",(?!\d{3}(?!\d))|,?\s(?:and|&)\s"
_SEVERAL = re.compile(r"[,;&)]|\\pm|\s(?:and|or)\s")
_NAMED = re.compile(r"^([A-Za-z]\w?)\s*=\s*(?=\S)")


def same_values(answer: str, reference: str, question: str) -> bool | None:
    """Several values in any order, unless they are numbered, named, parted by ";" or an order is asked for."""
    if not _SEVERAL.search(answer) and not _SEVERAL.search(reference):
        return None
    wanted, ordered = values_of(reference)
    given, _ = values_of(answer)
    if len(wanted) < 2 and len(given) < 2:
        return None
    if not ordered and any(sign in answer + reference for sign in "([<") and same_value(answer, reference, question):
        return True
    if len(wanted) != len(given):
        # A single value with a comma in it ("Paris, France") is still one text, a sentence with one still a sentence.
        return len(wanted) == 1 and same_value(answer, reference, question)
    if ordered or _ORDER_ASKED.search(question):
        return all(same_value(a, b) for a, b in zip(given, wanted, strict=True))
    if (names := _names(wanted)) != (others := _names(given)) and (not names or not others):
        # "x = 1, y = 2" against "1, 2": in the order of the names.
        return all(same_value(a, b) for a, b in zip(_by_name(given), _by_name(wanted), strict=True))
    return _same_bag(given, wanted)


def _same_bag(given: list[str], wanted: list[str]) -> bool:
    for value in wanted:
        place = next((i for i, other in enumerate(given) if same_value(other, value)), None)
        if place is None:
            return False
        given = given[:place] + given[place + 1 :]
    return True


def values_of(text: str) -> tuple[list[str], bool]:
    """The values of an answer, and whether their order counts."""
    for numbers, pattern in _MARKS.items():
        marks = ["".join(mark) for mark in pattern.findall(text)]
        if len(marks) > 1 and " ".join(marks) == " ".join(numbers.split()[: len(marks)]):
            return _between_marks(pattern, text), True
    braces = re.fullmatch(r"\\?\{(.*)\\?\}", text)
    body = braces[1].rstrip("\\") if braces else text
    pieces = _split_outside_brackets(body, r";")
    if len(pieces) > 1:
        return pieces, True
    pieces = _split_outside_brackets(body, _SEPARATOR)
    either = [part for piece in pieces for part in _split_outside_brackets(piece, r"\sor\s")]
    # "x = 1 or x = 2" are two solutions, "red or blue" is a guess.
    if all(re.search(r"\d|=", part) for part in either):
        pieces = either
    return [signed for piece in pieces for signed in _both_signs(piece)], False


def _between_marks(pattern: re.Pattern[str], text: str) -> list[str]:
    found = list(pattern.finditer(text))
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    return [plain(text[mark.end() : end].strip(" ;,")) for mark, end in zip(found, ends, strict=True)]


def _both_signs(piece: str) -> list[str]:
    if piece.count(r"\pm") != 1:
        return [piece]
    plus = "" if piece.strip().startswith(r"\pm") else "+"
    return [re.sub(r"\\pm ?", sign, piece).strip() for sign in (plus, "-")]


def _names(values: list[str]) -> list[str]:
    """The different names all values have ("x = 1", "y = 2"), sorted; empty when not all have one of their own."""
    found = [_NAMED.match(value) for value in values]
    names = sorted({match[1] for match in found if match})
    return names if len(names) == len(values) else []


def _by_name(values: list[str]) -> list[str]:
    return sorted(values, key=lambda value: value.partition("=")[0].strip()) if _names(values) else values


def _split_outside_brackets(text: str, separator: str) -> list[str]:
    """The non-empty pieces between separators that stand in no bracket."""
    pieces, depth, start = [], 0, 0
    for found in re.finditer(rf"[(\[{{]|[)\]}}]|(?P<separator>{separator})", text):
        if found["separator"] is None:
            depth += 1 if found[0] in "([{" else -1
        elif depth == 0:
            pieces.append(text[start : found.start()])
            start = found.end()
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]
