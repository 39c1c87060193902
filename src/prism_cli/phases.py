"""Phases of a stage: which one is under way, and at which step, for an error that says where it happened."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

GENERATION, WARM_UP, DISCRIMINATOR, UPDATE = "generation", "warm-up", "discriminator", "update"


class Place(NamedTuple):
    """Position of a stage: its phase and step.

    Attributes:
        phase: One of the four above; None while models and data are loaded.
        step: Optimiser step, from 1; None before training.
    """

    phase: str | None = None
    step: int | None = None


LOADING = Place()
_PLACE: ContextVar[Place] = ContextVar("place", default=LOADING)


def place() -> Place:
    """The innermost phase under way, or the one that an exception came out of."""
    return _PLACE.get()


def enter(phase: str | None = None, step: int | None = None) -> None:
    """Begins a phase that lasts until the next one; without arguments: loading."""
    _PLACE.set(Place(phase, step))


@contextmanager
def within(phase: str) -> Iterator[None]:
    """A phase of the step under way. An exception leaves it set, so that whoever catches it can read `place`."""
    before = _PLACE.get()
    _PLACE.set(before._replace(phase=phase))
    yield
    _PLACE.set(before)
