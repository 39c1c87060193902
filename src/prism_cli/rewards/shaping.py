"""Rewards that shape a response's length."""


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """What an over-long response loses, from 0 to −1 (DAPO, arXiv 2503.14476, Eq. 13).

    Args:
        length: Tokens in the response.
        max_length: Tokens at which the penalty is full.
        buffer: Tokens before `max_length` over which it grows linearly from 0; 0 makes it a step.
    """
    if length <= max_length - buffer:
        return 0.0
    return -1.0 if length >= max_length else (max_length - buffer - length) / buffer
