"""Words against words: plain texts after normalising, and yes or no in any wording."""

import re
import unicodedata
from functools import lru_cache

_YES = frozenset(("yes", "y", "yeah", "true", "t", "correct", "是", "是的", "对", "对的", "正确", "真", "有"))
_NO = frozenset(
    ("no", "n", "nope", "false", "f", "incorrect", "wrong", "否", "不", "不是", "不是的", "不对", "错", "错误")
)
_NO |= {"假", "没有"}
_DENIED = re.compile(r"^not (?:true|correct|right)|^it (?:is not|isn't)\b|^不正确")
_PARTED = re.compile(r"\w+(?:\s*[,.;:!(]| - )")
_SHORT = re.compile(r"\w+ (?:it|they|he|she|there|this|that) (?:is|are|was|were|does|do|has|have)(?:( not\b|n't\b)|\b)")
_HEDGE = re.compile(r"\b(?:or|but|maybe|perhaps|possibly|unsure|unclear|not sure|however|unless|cannot|can't)\b")
_ORDINALS = {"first": "1st", "second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "sixth": "6th"}


def same_polarity(answer: str, reference: str, _question: str = "") -> bool | None:
    """Yes and no ("true", "Yes, it is", "是"); None when the reference is neither, or one letter ("T", "n")."""
    wanted = _polarity(reference) if len(reference) > 1 or not reference.isascii() else None
    return None if wanted is None else _polarity_of_sentence(answer) == wanted


def _polarity(text: str) -> bool | None:
    word = text.casefold().strip(" .!,;")
    return True if word in _YES else False if word in _NO else None


def _polarity_of_sentence(text: str) -> bool | None:
    """Polarity of a short text: that of its first word, unless what follows takes it back or hedges."""
    text = re.sub(r"^(?:it is|it's|that is|that's|this is|the statement is) (?!not\b)", "", text.casefold())
    if _DENIED.search(text):
        return False if not _HEDGE.search(text) else None
    first, rest = [*re.split(r"[\s,.;:!]+", text.strip(), maxsplit=1), ""][:2]
    said = _polarity(first)
    # "Yes, it is", but not "No doubt" or "True love": a bare second word needs a sign before it.
    if said is None or not rest:
        return said
    opposite = _NO if said else _YES
    clauses = [clause.split() for clause in re.split(r"[,.;:!?()]", rest) if clause.strip()]
    taken_back = any(clause[0] in opposite or clause[-1] in opposite for clause in clauses)
    short = _SHORT.match(text)
    agrees = _PARTED.match(text) or (short and bool(short[1]) is not said)
    if not agrees or _HEDGE.search(rest) or taken_back:
        return None
    return said


def same_text(answer: str, reference: str, _question: str = "") -> bool | None:
    """True for texts that differ in case, articles, accents, quotes, hyphens or blanks only; else None."""
    return _normal(answer) == _normal(reference) or None


@lru_cache(maxsize=16384)
def _normal(text: str) -> str:
    """Lower case, no quotes, accents or leading article, no blanks around signs, no sign at the end."""
    if re.fullmatch(r"[A-Z]{2}|[A-Z][a-z]", text) and text.casefold() not in ("ok", "no", "tv", "uk", "us", "eu"):
        return text  # genotypes (Aa, AA) and formulas (Co, CO) differ by case alone
    folded = re.sub(r"[\"']", "", text.casefold())
    if not folded.isascii():
        folded = re.sub("(?<=[a-z])[\u0300-\u036f]+", "", unicodedata.normalize("NFD", folded))
    folded = re.sub(r"\s+", " ", folded.strip())
    folded = re.sub(r"^(?:an?|the) ", "", folded)
    folded = re.sub(r"(?<=\b[a-z])\.(?=[a-z]\b|$)|(?<=\.[a-z])\.(?=\s|$)", "", folded)
    folded = re.sub(r"(?<=[a-z])-(?=[a-z]{2})", " ", folded).replace(" & ", " and ")
    folded = re.sub(r"\s*([^\w\s])\s*", r"\1", folded)
    folded = re.sub(r"(?<=[a-z)])_\{?(\d+)\}?", r"\1", folded)
    folded = re.sub(r"(?<=[a-z)\d])\^\{?(\d?[+-])\}?$", r"\1", folded)
    folded = re.sub(r"^(\d+) to (\d+)$", r"\1:\2", folded)
    folded = re.sub(r"^0(?=\d:\d\d)", "", folded)
    folded = " ".join(_ORDINALS.get(word, word) for word in folded.split(" "))
    # A "!" after a digit is a factorial.
    ended = folded.rstrip(" .,;:?" if re.search(r"\d[\s!]*$", folded) else " .,;:!?")
    return ended or folded or text
