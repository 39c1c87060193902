"""Whether two short expressions are the same mathematics, by math-verify."""

import logging
import re
from functools import lru_cache

# math-verify's own timeouts are signals, which only work in the main thread, so they stay off and the input is bounded
# instead: short texts, a closed list of commands, no towers of powers, no factorials, no large exponents.
MAX_LENGTH = 120
_COMMANDS = (
    "frac dfrac tfrac sqrt pi cdot times div pm left right sin cos tan cot log ln le leq ge geq lt gt ne neq infty cup "
    "cap in alpha beta gamma delta theta lambda mu sigma omega phi angle circ"
)
_TOWER = re.compile(r"\^\s*(?:\{[^{}]*\^|\([^()]*\^|[^{(\s]+\^)|\^\s*[{(]?\s*-?\d{3,}|!|\d{16,}")


def same_mathematics(answer: str, reference: str) -> bool | None:
    """Whether two expressions are equal; None when either isn't one that can be compared in bounded time.

    Arithmetic that was not carried out ("2+3" for 5) is not an answer.
    """
    sides = [_latex(side) for side in (answer, reference)]
    if not all(_is_expression(side) for side in sides):
        return None
    if _unfinished(sides[0]) and not _unfinished(sides[1]):
        return False
    return _verify(*sides)


def _latex(text: str) -> str:
    text = re.sub(r"(?<![\\a-zA-Z])(pi|sqrt|sin|cos|tan|log|ln)(?![a-zA-Z])", r"\\\1", text)
    return re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text).replace("<=", r"\le ").replace(">=", r"\ge ")


def _is_expression(text: str) -> bool:
    """Short, made of known commands and single letters, with at least one digit, command or operator in it."""
    if len(text) > MAX_LENGTH or _TOWER.search(text):
        return False
    if any(command not in _COMMANDS.split() for command in re.findall(r"\\([a-zA-Z]+)", text)):
        return False
    bare = re.sub(r"\\[a-zA-Z]+", " ", text)
    return not re.search(r"[A-Za-z]{3,}|[^\w\s.,+*/^=<>(){}\[\]|-]|[^\x00-\x7f]", bare) and bool(
        re.search(r"[\d\\^=<>+*/]", text)
    )


def _unfinished(text: str) -> bool:
    """Sums, products and quotients of plain numbers only ("2+3", "6 \\times 7"), a lone fraction aside."""
    text = re.sub(r"\\(?:times|cdot|div)", "*", text)
    if not re.fullmatch(r"[\d\s.,+*/()^{}-]+", text) or re.fullmatch(r"-?\d+/\d+", text):
        return False
    return bool(re.search(r"[\d)}]\s*[+*/-]\s*[\d({-]|\)\s*[\d(]", text))


@lru_cache(maxsize=4096)
def _verify(answer: str, reference: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that its timeouts are off
    parsed = [
        parse(f"${side}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0)
        for side in (reference, answer)
    ]
    return all(parsed) and verify(parsed[0], parsed[1], timeout_seconds=0)
