"""An answer without what people and models put around it: Markdown, LaTeX dress, "the answer is", "选B"."""

import re
import unicodedata
from functools import lru_cache

_SYMBOLS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "√": r"\sqrt ", "º": "°", "⁄": "/",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ",
    "∅": r"\emptyset ", "∠": r"\angle ", "△": r"\triangle ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
    "δ": r"\delta ", "θ": r"\theta ", "λ": r"\lambda ", "μ": "µ", "π": r"\pi ", "ρ": r"\rho ", "σ": r"\sigma ",
    "φ": r"\varphi ", "ω": r"\omega ", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "「": '"', "」": '"',
    "《": '"', "》": '"', "【": " ", "】": " ", "。": ".", "、": ", ",
})  # fmt: skip
# What Unicode's compatibility form would turn into other numbers: 10⁵ into 105, 2⅓ into 21/3, ① into 1.
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴-⁹]+")
_SMALL_FRACTION = re.compile("[¼-¾⅐-⅞]")
_CIRCLED = re.compile("[①-⑨]")
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence|finally)\b[, ]*)?(?:the |my )?(?:(?:correct|right|final|best) )*"
    r"(?:answer|option|choice|result)"
    r"(?:(?: is| would be| must be| should be)?\s*[:=]\s*| (?:is|would be|must be|should be) | (?=[(\[]?[A-Ja-j]\b))",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"^(?:I |we )(?:would |will |'d )?(?:choose|select|pick|go with|think it is) (?=(?:option )?\(?[A-J]\b)",
    re.IGNORECASE,
)
_LETTER_NAMED = re.compile(r"^(?:the )?letter (?=[A-J]$)", re.IGNORECASE)
_EXPLANATION = re.compile(
    r"(?<=\S)\s*\n\s*(?:explanation|reason|reasoning|解析|理由)\s*:.*$", re.IGNORECASE | re.DOTALL
)
_CHINESE_LEAD = re.compile(
    r"^(?:所以|因此|综上|故)?\s*,?\s*(?:(?:正确|最终|最后)?的?(?:答案|选项|结果)(?:应该|应)?(?:是|为|选)?\s*:?\s*(?=\S)"
    r"|[故应我]?选(?:择|项)?\s*:?\s*(?=\(?[A-J]))"
)
_STATEMENT = re.compile(r"\b(?:(?:final|correct) )?answer is\b\s*:?\s*", re.IGNORECASE)
# "I doubt that the answer is …" states nothing; what lies before a comma is another clause.
_DOUBT = re.compile(
    r"(?:\bnot|n't|\bnever|\bdoubt|\bunlikely|\bwhether|\bif|\bunsure)\b[^,;.]*$|^(?:yes|no)\b", re.IGNORECASE
)
_CALLED_RIGHT = re.compile(r"\s(?:is|would be) the (?:correct|right|best|final) (?:answer|option|choice|one)$", re.I)
_LETTER_CALLED_RIGHT = re.compile(
    r"^((?:option |choice )?\(?[A-J]\)?) is (?:correct|right)(?=$|,? (?:because|since)\b)", re.IGNORECASE
)
# A letter in a line of its own, and what is said of it below.
_LETTER_LINE = re.compile(r"^(\(?[A-J]\)?)[.:)]?\s*\n\s*(?=\S{2})(?!\(?[A-J]\b)")
_YEAR = re.compile(r"^(?:in )?(?:the )?year (?=[12]\d{3}$)|^in (?=[12]\d{3}$)", re.IGNORECASE)
_FIGURE = re.compile(r"(?<!\\)\b(angle|triangle) (?=[A-Z]{1,3}\b)", re.IGNORECASE)
_APPROXIMATELY = re.compile(
    r"^(?:=|≈|≃|~|approximately|approx\.?|about|around|roughly|exactly)\s*(?=[-+.$€£¥\d\\])(?!\\[bp]m?od)",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r",? (?:in total|in all|altogether|respectively|(?:in|on) the (?:image|picture|figure|photo|diagram|chart))$",
    re.IGNORECASE,
)
_BARE = re.compile(r"-?[A-Za-z0-9]+(?:\.[0-9]+)?")  # most answers: a letter, a word, a number
_BULLET = re.compile(r"^\s*(?:[-*•]|(\d)[.)])\s+(?=\S)", re.MULTILINE)


@lru_cache(maxsize=16384)
def plain(text: str) -> str:
    """An answer without what surrounds it and with one spelling a symbol; empty only for nothing but blanks."""
    if _BARE.fullmatch(text):
        return text
    text = _one_spelling(text)
    stripped = _content(_without_list_marks(text))
    return stripped or " ".join(text.split())


def _one_spelling(text: str) -> str:
    text = _SUPERSCRIPT.sub(lambda found: "^" + _braced(unicodedata.normalize("NFKC", found[0])), text)
    text = _SMALL_FRACTION.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
    text = _CIRCLED.sub(lambda found: f" ({unicodedata.digit(found[0])}) ", text)
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS)
    text = re.sub(r"(?<=\d) ?~ ?(?=\d)", "-", text)
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf").strip()


def _braced(exponent: str) -> str:
    exponent = exponent.replace("−", "-")
    return exponent if len(exponent) == 1 else f"{{{exponent}}}"


def _without_list_marks(text: str) -> str:
    """Bullets become a list with commas, numbered lines "(1) … (2) …"."""
    text = re.sub(r"^#+ +", "", text.replace("**", "").replace("__", "").replace("`", ""), flags=re.MULTILINE)
    text = re.sub(r"^\*([^*]+)\*$", r"\1", text.strip())
    marks = _BULLET.findall(text)
    if len(marks) < 2 or not _BULLET.match(text):
        return text
    if all(marks):
        return _BULLET.sub(r"(\1) ", text)
    return ", ".join(line.strip().rstrip(",;") for line in _BULLET.sub("", text).splitlines() if line.strip())


def _content(text: str) -> str:
    text = _LETTER_LINE.sub(r"\1. ", _statement(_unboxed(_EXPLANATION.sub("", text))))
    text = _LETTER_CALLED_RIGHT.sub(r"\1", _CALLED_RIGHT.sub("", _without_dot(text)))
    for pattern in (_LEAD, _CHOSEN, _LETTER_NAMED, _CHINESE_LEAD):
        while (shorter := pattern.sub("", text)) != text and shorter:
            text = shorter
    text = _without_dot(" ".join(_without_latex_dress(text).split()))
    text = _FIGURE.sub(lambda found: f"\\{found[1].lower()} ", text)
    return _YEAR.sub("", _APPROXIMATELY.sub("", _TAIL.sub("", text)))


def _without_dot(text: str) -> str:
    """A text without its final dot; three dots go on."""
    text = text.strip()
    return text if text.endswith("..") else text.rstrip(".").strip()


def _statement(text: str) -> str:
    """Statement behind the one "the answer is …" of a text; the whole text when it is doubted or there are several."""
    found = list(_STATEMENT.finditer(text))
    if len(found) != 1 or _DOUBT.search(text[: found[0].start()]):
        return text
    return text[found[0].end() :] or text


def _unboxed(text: str) -> str:
    r"""The contents of all \boxed{…}, parted by ";"; one with a word or two after it (a unit) keeps them."""
    contents, rest, position = [], [], 0
    for found in re.finditer(r"\\f?box(?:ed)?\s*\{", text):
        if found.start() < position:
            continue
        depth, end = 1, found.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            return text
        contents.append(text[found.end() : end - 1])
        rest.append(text[position : found.start()])
        position = end
    if not contents:
        return text
    before, after = "".join(rest).strip(" $"), text[position:].strip(" $.")
    if len(contents) == 1 and not before and 0 < len(after.split()) <= 2:
        return f"{contents[0]} {after}"
    return "; ".join(contents)


def _without_latex_dress(text: str) -> str:
    """The same expression without delimiters, spacing commands and other spellings that carry no meaning."""
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        text = _without_dot(text)
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner.replace(r"\$", ""):
            text = inner
    if re.search(r"[$\\^{]", text):
        text = _without_commands(text)
    return re.sub(r"(?<=\d) ?[xX*] ?10\^\s*\{?\(?([-+]?\d+)\)?\}?", r"*10^\1", text.replace("~", " "))


def _word(found: re.Match[str]) -> str:
    return f" {found[1].rstrip()}^" if found[2] else f" {found[1]} "


def _without_commands(text: str) -> str:
    text = re.sub(r"\$([^$]*\\[^$]*|[^$ ]+)\$(?!\d)", r"\1", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|operatorname|mbox|rm|textit)\s*\{([^{}]*)\}(\s*\^)?", _word, text)
    text = re.sub(r"\\(?:left|right|displaystyle|big|Big)(?![a-zA-Z])|\\[!]", "", text)
    text = re.sub(r"(?<!\\)\\[,;: ]|\\q?quad\b", " ", text).replace("{,}", ",")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", "°", text).replace(r"\%", "%").replace(r"\$", "$")
    text = re.sub(r"°\s*([CF])\b", r"°\1", text)
    text = re.sub(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))", r" \1\2/\3\4 ", text)
    text = re.sub(r"(-)\s+(\d+/)", r"\1\2", text)
    return re.sub(r"\\(?:times|cdot)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?", r"*10^\1", text)
