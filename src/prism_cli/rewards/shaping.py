"""Rewards that shape how a response is written: its length, its repetitions."""

import re

# Words that must come again in the same order to count as a repetition: phrases of any text are shorter.
PHRASE = 8
# So much of a text may be repeated phrases at no loss: lists, tables and a restated question.
ALLOWED = 0.1
# A letter of a script without blanks is a word of its own, and so is a piece of what has no end ("aaaa…").
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w{1,12}|[^\w\s]")


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """Penalty on an over-long response, from 0 to −1 (DAPO, arXiv 2503.14476, Eq. 13).

    Args:
        length: Tokens in the response.
        max_length: Tokens at which the penalty is full.
        buffer: Tokens before `max_length` over which it grows linearly from 0; 0 makes it a step.
    """
    if length <= max_length - buffer:
        return 0.0
    return -1.0 if length >= max_length else (max_length - buffer - length) / buffer


def repetition_penalty(text: str, phrase: int = PHRASE, allowed: float = ALLOWED) -> float:
    """Penalty on a repetitive text, from 0 to −1: its share of repeated phrases beyond what is allowed.

    Of a text's runs of `phrase` words, a repeated one stood in it before. The time is linear in the text.

    Args:
        text: A response.
        phrase: Words in a run.
        allowed: Share that costs nothing.
    """
    words = _WORD.findall(text)
    runs = len(words) - phrase + 1
    if runs < 2:
        return 0.0
    distinct = len({tuple(words[i : i + phrase]) for i in range(runs)})
    return min(0.0, (allowed - (1 - distinct / runs)) / (1 - allowed))
