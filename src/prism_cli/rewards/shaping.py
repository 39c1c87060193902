"""How single rewards become the one number RL optimises."""


def combined_reward(
    accuracy: float, format: float, *, well_formed: bool, accuracy_weight: float = 0.8, format_weight: float = 0.2
) -> float:
    """0.8 · accuracy + 0.2 · format, and 0 in all for a response that is not well-formed (the paper's RL reward)."""
    return accuracy_weight * accuracy + format_weight * format if well_formed else 0.0


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
