"""Whether two short expressions are the same mathematics, by math-verify."""

import re
from functools import lru_cache

from prism_cli.rewards.math_process import MathProcess
from prism_cli.rewards.units import read_unit

MAX_LENGTH = 160
PROCESS = MathProcess()
# What has no business in a final answer isn't tried, and what can't end in time is not begun: a closed list of
# commands, no towers of powers, no large exponents or factorials.
_COMMANDS = (
    "frac dfrac tfrac sqrt pi cdot times div pm left right sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh "
    "log ln lg exp le leq ge geq lt gt ne neq infty cup cap in alpha beta gamma delta epsilon theta lambda mu nu rho "
    "sigma tau omega phi varphi psi Delta Omega angle triangle circ binom int sum lim to begin end vec overline hat "
    "mathbb emptyset cdots ldots dots setminus subset perp parallel cong sim approx mid"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[pbv]?matrix\}")
_TOWER = re.compile(
    r"\^\s*(?:\{[^{}]*\^|\([^()]*\^|[^{}()\s+*/=-]+\^)|\^\s*[{(]?\s*-?\d{4,}|\d{3,}\s*!|[!)]\s*!|\d{25,}"
)
_OPERATOR = re.compile(r"[\\^=+*/()!<>|-]")
_LETTER = re.compile(r"[a-zA-Z]")
_WITH_UNIT = re.compile(
    r"^((?:[\d\s.,+*/^=(){}-]|\\(?:pi|sqrt|frac|dfrac|times|cdot)(?![a-zA-Z]))+)(?<=[\d)}i\s])([A-Za-z°%µΩ].*)$"
)


def same_mathematics(answer: str, reference: str, question: str = "") -> bool | None:
    r"""Whether two expressions are equal; None when either is none.

    Arithmetic that was not carried out ("2+3" for 5) is not an answer. Units after an expression (`25\pi` cm²) must
    agree where both have one.
    """
    (answer, given), (reference, wanted) = _and_unit(_latex(answer)), _and_unit(_latex(reference))
    if not _is_expression(answer) or not _is_expression(reference):
        return None
    # Without an operator on either side there is nothing that the words and numbers before didn't see.
    if not _OPERATOR.search(answer + reference) and not (_LETTER.search(answer) and _LETTER.search(reference)):
        return None
    if given and wanted and given != wanted:
        return False
    if _equation_of_letters(answer) != _equation_of_letters(reference):
        return False
    if _unfinished(answer) and not _unfinished(reference):
        return False
    return _same(_with_fractions(answer), _with_fractions(reference))


def _latex(text: str) -> str:
    text = re.sub(r"(?<![\\a-zA-Z])(pi|sqrt|sin|cos|tan|log|ln|infty)(?![a-zA-Z])", r"\\\1", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    return text.replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ").replace("**", "^")


def _with_fractions(text: str) -> str:
    """ "1/2 x" is half of x, not 1/(2x)."""
    return re.sub(r"(?<![\d.^/a-zA-Z}])(\d+)/(\d+)(?![\d.^/a-zA-Z(])", r"\\frac{\1}{\2}", text)


def _and_unit(text: str) -> tuple[str, object]:
    """An expression of numbers alone and the unit after it, (kinds, scale) or None."""
    found = _WITH_UNIT.match(text)
    # Most single letters may as well be variables.
    if not found or (len(found[2]) == 1 and not re.search(r" [mgNJWVL]$", text)):
        return text, None
    unit = read_unit(found[2], attached=True)
    return (found[1].strip(), unit) if unit else (text, None)


def _is_expression(text: str) -> bool:
    """Short, made of known commands and single letters, with at least one digit, command or operator in it."""
    if len(text) > MAX_LENGTH or _TOWER.search(text):
        return False
    text = _ENVIRONMENT.sub(r"\\\\", text)
    if any(command not in _COMMANDS.split() for command in re.findall(r"\\([a-zA-Z]+)", text)):
        return False
    bare = re.sub(r"\\[a-zA-Z]+", " ", text)
    return not re.search(r"[A-Za-z]{3,}|[^\w\s.,+*/^=<>(){}\[\]|!&\\-]|[^\x00-\x7f]", bare) and bool(
        re.search(r"[\d\\^=<>+*/]", text)
    )


def _equation_of_letters(text: str) -> bool:
    """Whether it is an equation, not just a name for what follows: "x + 2 = 5", but not "f(x) = 5" or "2 + 3 = 5"."""
    left, equals, _ = text.partition("=")
    named = re.fullmatch(r"\s*\\?[a-zA-Z]\w*'?(?:\([a-z, ]*\))?\s*", left)
    return bool(equals and not named and re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", left)))


def _unfinished(text: str) -> bool:
    """Sums, products and quotients of plain numbers only ("2+3", "6 \\times 7", "5!"), a lone fraction aside."""
    text = re.sub(r"\\(?:times|cdot|div)", "*", text)
    if not re.fullmatch(r"[\d\s.,+*/()^{}!-]+", text) or re.fullmatch(r"-?\d+/\d+", text):
        return False
    return bool(re.search(r"[\d)}]\s*[+*/-]\s*[\d({-]|\)\s*[\d(]|!", text))


@lru_cache(maxsize=16384)
def _same(answer: str, reference: str) -> bool:
    return PROCESS.same(answer, reference)
