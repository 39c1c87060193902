"""Is a final answer right? Deterministic rules, one small function a family of answers.

A family looks at an answer and a reference and says True, False, or None for "not mine"; the first that speaks decides.
The order is: letter choices, several values, coordinate tuples, quantities, mathematics, plain text.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from prism_cli.rewards.mathematics import same_mathematics
from prism_cli.rewards.quantities import same_quantity

MAX_LENGTH = 1024

_SYMBOLS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "√": r"\sqrt ", "º": "°",
    "²": "^2", "³": "^3", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "μ": "µ",
    "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "∞": r"\infty ", "∪": r"\cup ",
})  # fmt: skip
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence)\b[, ]*)?(?:the )?(?:(?:correct|right|final|best) )?"
    r"(?:answer|option|choice|result)"
    r"(?:(?: is| would be| must be)?\s*[:=]\s*| (?:is|would be|must be) | (?=\(?[A-Ja-j]\b))",
    re.IGNORECASE,
)
_LAST_STATEMENT = re.compile(r"^.*\b(?:final |correct )?answer is\b\s*:?\s*", re.IGNORECASE | re.DOTALL)
_LETTER = re.compile(r"^\(?([A-Ja-j])(?:[).:]|$)\s*[):.]?\s*(.*)$", re.DOTALL)
_OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-J])[).:]\s*(.+?)(?=\s+\(?[A-J][).:]\s|\s*$)", re.DOTALL)
_LETTER_LIST = re.compile(r"\(?[A-J]\)?(?:(?:\s*[,;&]\s*|\s+and\s+|\s*,\s*and\s+|\s+)\(?[A-J]\)?)+\.?")
_NUMBERED = re.compile(r"(?:^|(?<=[\s;,]))\((\d)\)\s*")
_ORDER_ASKED = re.compile(r"\b(?:order|ascending|descending|sort|rank|sequence|arrange|coordinates?)", re.IGNORECASE)


def is_correct(answer: str, accepted: Sequence[str], question: str = "") -> bool:
    """Whether a final answer equals one of the accepted ones.

    Never true for an empty answer, for several answers where one is asked, or from 1024 characters on.

    Args:
        answer: The final answer alone (a few words around it, "the answer is …", `\\boxed{…}`, are allowed).
        accepted: The accepted final answers.
        question: The question's text. Its options ("A. … B. …") tie letters to texts; its words decide whether order
            matters and which unit or percentage was asked for.
    """
    if len(answer) >= MAX_LENGTH or not (given := plain(answer)):
        return False
    return any(_same_answer(given, plain(reference), question) for reference in accepted if reference.strip())


def plain(text: str) -> str:
    """An answer without what surrounds it (LaTeX and Markdown wrappers, lead-ins, final dot), one spelling a symbol."""
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS))
    text = text.replace("**", "").replace("`", "").strip()
    boxed = re.findall(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text)
    text = "; ".join(boxed) if boxed else text
    text = _LAST_STATEMENT.sub("", text)
    while (shorter := _LEAD.sub("", text)) != text and shorter:
        text = shorter
    return " ".join(_without_latex_dress(text).split()).rstrip(".").strip()


def _without_latex_dress(text: str) -> str:
    """The same expression without delimiters, spacing commands and other spellings that carry no meaning."""
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        text = text.strip().rstrip(".")
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            text = text[len(opening) : -len(closing)]
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|operatorname|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!]", "", text)
    text = re.sub(r"\\[,;: ]|~|\\quad\b", " ", text).replace("{,}", ",")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", "°", text).replace(r"\%", "%").replace(r"\$", "$")
    text = re.sub(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))", r" \1\2/\3\4 ", text)
    text = re.sub(r"(-)\s+(\d+/)", r"\1\2", text)
    text = re.sub(r"\\(?:times|cdot)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?", r"*10^\1", text)
    return re.sub(r"(?<=\d) ?[xX*] ?10\^\s*\{?\(?([-+]?\d+)\)?\}?", r"*10^\1", text)


def _same_answer(answer: str, reference: str, question: str) -> bool:
    for family in (_same_choice, _same_values, _same_value):
        verdict = family(answer, reference, question)
        if verdict is not None:
            return verdict
    return False


def _same_value(answer: str, reference: str, question: str) -> bool:
    """One value against one value."""
    answer, reference = _without_name(answer, reference)
    families: tuple[Callable[[], bool | None], ...] = (
        lambda: _same_tuple(answer, reference, question),
        lambda: same_quantity(answer, reference, question),
        lambda: _same_text(answer, reference) or None,
        lambda: same_mathematics(answer, reference),
    )
    return next((verdict for family in families if (verdict := family()) is not None), False)


# Letter choices


@lru_cache(maxsize=1024)
def options_of(question: str) -> dict[str, str]:
    """The options a question lists ("A. … B. …"): letter → text; empty when there are none, or out of order."""
    found = _OPTION.findall(question)
    if len(found) < 2 or [letter for letter, _ in found] != [chr(ord("A") + i) for i in range(len(found))]:
        return {}
    return {letter: plain(text) for letter, text in found}


def _same_choice(answer: str, reference: str, question: str) -> bool | None:
    """Letters and the options they stand for."""
    options = options_of(question)
    wanted, given = _letters(reference, options), _letters(answer, options)
    if wanted is None and options:
        wanted = _letters_of_text(reference, options)
    if wanted is None:
        return None
    if given is None:
        rest = _LETTER.match(reference)
        if not options and rest and rest[2]:
            return _same_value(answer, plain(rest[2]), question)
        given = _letters_of_text(answer, options)
    return given == wanted


def _letters(text: str, options: dict[str, str]) -> frozenset[str] | None:
    """The letters a text chooses ("B", "(b)", "B. text", "A and C"); None when it names none, or contradicts itself."""
    if _LETTER_LIST.fullmatch(text):
        letters = re.findall(r"[A-J]", text.replace("and", ""))
        return frozenset(letters) if len(set(letters)) == len(letters) else None
    if options and len(text) > 1 and set(text) <= set(options) and len(set(text)) == len(text):
        return frozenset(text)
    found = _LETTER.match(text)
    if not found:
        return None
    letter, rest = found[1].upper(), plain(found[2])
    if re.fullmatch(r"\(?[A-J]\)?", rest) or re.search(r"(?:^|\s)\(?[B-J][).:](?:\s|$)", rest):
        return None
    contradicts = rest and options and _letters_of_text(rest, options) not in (None, frozenset(letter))
    return None if contradicts else frozenset(letter)


def _letters_of_text(text: str, options: dict[str, str]) -> frozenset[str] | None:
    """The letter of the one option that says the same; None when none or several do."""
    same = [letter for letter, option in options.items() if _same_value(text, option, "")]
    return frozenset(same) if len(same) == 1 else None


# Several values


def _same_values(answer: str, reference: str, question: str) -> bool | None:
    """Several values: in any order, unless they are numbered, parted by ";" or an order is asked for."""
    wanted, ordered = _values(reference)
    given, _ = _values(answer)
    if len(wanted) < 2 and len(given) < 2:
        return None
    if "(" in answer + reference and _same_value(answer, reference, question):
        return True
    if len(wanted) != len(given):
        # A single value with a comma in it ("Paris, France") is still one text.
        return _same_text(answer, reference)
    if ordered or _ORDER_ASKED.search(question):
        return all(_same_value(a, b, "") for a, b in zip(given, wanted, strict=True))
    for value in wanted:
        same = next((other for other in given if _same_value(other, value, "")), None)
        if same is None:
            return False
        given = [*given[: given.index(same)], *given[given.index(same) + 1 :]]
    return True


def _values(text: str) -> tuple[list[str], bool]:
    """The values of an answer, and whether their order counts."""
    marks = _NUMBERED.findall(text)
    if len(marks) > 1 and marks == [str(i + 1) for i in range(len(marks))]:
        return [plain(piece.strip(" ;,")) for piece in _NUMBERED.split(text)[2::2]], True
    braces = re.fullmatch(r"\\?\{(.*)\\?\}", text)
    body = braces[1].rstrip("\\") if braces else text
    pieces = _split_outside_brackets(body, r";")
    if len(pieces) > 1:
        return pieces, True
    pieces = _split_outside_brackets(body, r",(?!\d{3}(?!\d))|,?\s(?:and|or)\s")
    return [signed for piece in pieces for signed in _both_signs(piece)], False


def _both_signs(piece: str) -> list[str]:
    if r"\pm" in piece and piece.count(r"\pm") == 1:
        return [piece.replace(r"\pm", sign).replace("- ", "-").strip() for sign in ("", "-")]
    return [piece]


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


# One value


def _without_name(answer: str, reference: str) -> tuple[str, str]:
    """Drops "x =" where only one side has it, or both the same."""
    named = [re.match(r"^(\(?[A-Za-z](?:\w|, ?[A-Za-z])*\)?)\s*=\s*(?=[^=])", side) for side in (answer, reference)]
    if all(named) and named[0][1] != named[1][1]:  # pyright: ignore[reportOptionalSubscript]
        return answer, reference
    a, b = (side[found.end() :] if found else side for side, found in zip((answer, reference), named, strict=True))
    return a, b


def _same_tuple(answer: str, reference: str, question: str) -> bool | None:
    """Coordinates and intervals: entries in order, brackets alike (a bare list may stand for round ones)."""
    pair = [re.fullmatch(r"([(\[])((?:[^()\[\]]*,)+[^()\[\]]*)([)\]])", side) for side in (answer, reference)]
    if not any(pair):
        return None
    brackets = {found[1] + found[3] if found else "()" for found in pair}
    entries = [(found[2] if found else side).split(",") for found, side in zip(pair, (answer, reference), strict=True)]
    if len(brackets) > 1 or len(entries[0]) != len(entries[1]):
        return False
    return all(_same_value(a.strip(), b.strip(), question) for a, b in zip(*entries, strict=True))


def _same_text(answer: str, reference: str) -> bool:
    return _normal_text(answer) == _normal_text(reference) != ""


def _normal_text(text: str) -> str:
    """Lower case, no quotes, no article in front, no blanks around signs, no sign at the end."""
    text = re.sub(r"[\"']", "", text.casefold())
    text = re.sub(r"^(?:an?|the) ", "", text.strip())
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", text).strip(" .,;:!?")
