"""Detectors of a discriminator that teaches nothing: pure functions from the logged metrics to a warning or None."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

History = Sequence[Mapping[str, float]]
"""The logged metrics, one mapping a logging step, oldest first; each has `step`."""

WATCHED_STEPS = 20
SATURATED = 0.95
BLIND = 0.55
COLLAPSED = 0.9


class HealthWarning(NamedTuple):
    """A warning about a run, which goes on.

    Attributes:
        kind: What, and of which part; given once a run.
        cause: What was seen, and what it means.
        cure: What to do.
    """

    kind: str
    cause: str
    cure: str


def lately(history: History, name: str, steps: int = WATCHED_STEPS) -> list[float]:
    """A metric's values over the last steps; none while the run is younger than that."""
    if not history or history[-1]["step"] - history[0]["step"] + 1 < steps:
        return []
    return [line[name] for line in history if name in line and line["step"] > history[-1]["step"] - steps]


def saturated(history: History, part: str) -> HealthWarning | None:
    """Saturation: the discriminator is always right, so every rollout of a group scores low alike."""
    values = lately(history, f"discriminator/accuracy/{part}")
    if not values or min(values) <= SATURATED:
        return None
    return HealthWarning(
        f"saturated/{part}",
        f"the discriminator told teacher from policy in {part} at least {min(values):.0%} of the time for "
        f"{WATCHED_STEPS} steps: it is too far ahead to give a direction",
        "lower discriminator.learning_rate, shorten discriminator.warmup, or train SFT longer on the teacher's answers",
    )


def blind(history: History, part: str) -> HealthWarning | None:
    """Blindness: the discriminator was hardly better than chance, so normalised scores are noise."""
    if not lately(history, f"discriminator/accuracy/{part}"):
        return None
    first = history[0]["step"] + WATCHED_STEPS
    name = f"discriminator/accuracy/{part}"
    values = [line[name] for line in history if name in line and line["step"] < first]
    if not values or sum(values) / len(values) >= BLIND:
        return None
    return HealthWarning(
        f"blind/{part}",
        f"in its first {WATCHED_STEPS} steps the discriminator told teacher from policy in {part} only "
        f"{sum(values) / len(values):.0%} of the time: its scores are hardly more than noise",
        "give the warm-up more pairs or a higher learning rate, or raise discriminator.head_std; "
        "advantage.std_floor keeps noise small",
    )


def collapsed_router(history: History, part: str) -> HealthWarning | None:
    """Router collapse: one expert reads nearly every token of a part, so the others learn nothing of it."""
    prefix = f"discriminator/router_load/{part}/"
    for name in dict.fromkeys(name for line in history for name in line if name.startswith(prefix)):
        values = lately(history, name)
        if values and min(values) > COLLAPSED:
            return HealthWarning(
                f"collapsed_router/{part}",
                f"expert {name.removeprefix(prefix)} of the discriminator took at least {min(values):.0%} of the "
                f"tokens of {part} for {WATCHED_STEPS} steps: the mixture has collapsed",
                "set discriminator.balance to 0.01, or take discriminator.type=dense",
            )
    return None
