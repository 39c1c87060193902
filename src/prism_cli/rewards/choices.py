"""Letter choices, and the options they stand for: "B", "(b) blue", "Option B", "A and C", "blue"."""

import re
from functools import lru_cache

from prism_cli.rewards.single import same_value
from prism_cli.rewards.wording import plain

_OPTION = re.compile(
    r"(?:^|(?<=[\s,;?。；，:：？]))[(（]?([A-J])(?:[).:、．：）]\s*)(.+?)(?=[\s,;。；，]+[(（]?[A-J][).:、．：）]|\s*$)",
    re.DOTALL,
)
_LETTER = re.compile(
    r"^(?:(?:option|choice|选项) ?)?[(\[{<]?(?:([A-J])(?: ?- | ?(?=\()|, ?(?=because|since|as )| (?=because|since)|, )"
    r"|([A-Ja-j])(?:[)\]}>.:,]|$))[\s):.]*(.*)$",
    re.DOTALL,
)
_LIST = re.compile(
    r"(?:both |options? )?\(?[A-J]\)?\.?"
    r"(?:(?:\s*,\s*and\s+|\s*[,;&/]\s*|\s+and\s+|\s+|)(?:option )?(?:\([A-J]\)|(?<![A-Z)])[A-J]\b|[A-J]\)))+\.?"
)
_LISTED = re.compile(r"(?<![A-Za-z])[A-J](?![a-z])|(?<=[A-J])[A-J](?![a-z])")
_ANOTHER = re.compile(r"\(?[A-Za-z]\)?$|(?:.*[\s,;])?\(?[B-J](?:[).:](?:\s|$)|\b(?! ?['\w]))", re.DOTALL)
# "The red car (C)", and "C) 12" where the question lists no options.
_LETTER_AFTER = re.compile(r"(.+?),? \((?:option )?([A-J])\)", re.IGNORECASE)
_LETTER_BEFORE = re.compile(r"\(?[A-J]\) +(?=\S)")
_HEDGE = re.compile(r"\b(?:or|maybe|perhaps|possibly)\b")
_REASON = re.compile(r"(?:because|since|as)\b", re.IGNORECASE)


@lru_cache(maxsize=4096)
def options_of(question: str) -> dict[str, str]:
    """The options a question lists last ("A. … B. …"): letter → text; empty when there are none, or out of order."""
    found = _OPTION.findall(question)
    starts = [place for place, (letter, _) in enumerate(found) if letter == "A"]
    found = found[starts[-1] :] if starts else []
    if len(found) < 2 or [letter for letter, _ in found] != [chr(ord("A") + i) for i in range(len(found))]:
        return {}
    return {letter: plain(text) for letter, text in found}


def same_choice(answer: str, reference: str, question: str) -> bool | None:
    """Whether the same letters are chosen, by letter or by the text of an option."""
    options = options_of(question)
    wanted, given = _letters(reference, options), _letters(answer, options)
    if wanted is None and options:
        wanted = _letters_of_text(reference, options)
    if wanted is None:
        bare = (
            _LETTER_BEFORE.sub("", answer, count=1) if not options and not _LETTER_BEFORE.match(reference) else answer
        )
        return (same_value(bare, reference, question) or None) if bare != answer else None
    if given is None and not options and len(wanted) > 1 and re.fullmatch("[A-J]+", answer):
        return len(answer) == len(wanted) == len(set(answer)) and wanted == set(answer)
    if given is None:
        rest = _rest(reference)
        if not options and rest:
            return same_value(answer, rest, question)
        given = _letters_of_text(answer, options)
    return given == wanted


def _letters(text: str, options: dict[str, str]) -> frozenset[str] | None:
    """The letters a text chooses ("B", "(b)", "B. text", "A and C"); None when it names none, or contradicts itself."""
    if _LIST.fullmatch(text):
        letters = _LISTED.findall(text)
        return None if "/" in text or len(set(letters)) != len(letters) else frozenset(letters)
    if options and len(text) > 1 and set(text) <= set(options) and len(set(text)) == len(text):
        return frozenset(text)
    after = _LETTER_AFTER.fullmatch(text) if options else None
    if after and _letters_of_text(plain(after[1]), options) == {after[2].upper()}:
        return frozenset(after[2].upper())
    found = _LETTER.match(text)
    if not found:
        return None
    letter, rest = (found[1] or found[2]).upper(), plain(found[3])
    by_comma = text[: found.start(3)].endswith(", ")
    return frozenset(letter) if _fits(letter, rest, options, by_comma) else None


def _fits(letter: str, rest: str, options: dict[str, str], by_comma: bool) -> bool:
    """Whether what follows a letter leaves the choice as it is: nothing, the option's text, or a reason."""
    if not rest or _letters_of_text(rest, options) == {letter}:
        return True
    # Another letter: "a:b" is a ratio, "B. C" and "A. red B. blue" choose twice.
    if _ANOTHER.match(rest):
        return False
    if not _REASON.match(rest) and (by_comma or _HEDGE.search(rest)):
        return False
    return not options or _letters_of_text(rest, options) in (None, frozenset(letter))


def _rest(text: str) -> str:
    """Text behind a letter: the option's text."""
    found = _LETTER.match(text)
    return plain(found[3]) if found else ""


def _letters_of_text(text: str, options: dict[str, str]) -> frozenset[str] | None:
    """The letter of the one option that says the same; None when none or several do."""
    same = [letter for letter, option in options.items() if text == option]
    same = same or [letter for letter, option in options.items() if same_value(text, option)]
    return frozenset(same) if len(same) == 1 else None
