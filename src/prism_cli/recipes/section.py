"""Sections of recipes: strict, frozen, documented types; beside a field stands the value that `--shrink` takes.

Defaults are the paper's values where the paper gives one, so that a recipe file only lists decisions. The string under
a field is its documentation. Alternatives are unions on `type`, so that a wrong combination can't be written.
"""

import os.path
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

Fraction = Annotated[float, Field(ge=0, le=1)]


UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """Strict and frozen: an unknown key, or a string where a number belongs, is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def type_if_absent(default: str) -> BeforeValidator:
    """A section of a union may leave `type` out when it is the usual one."""

    def fill(section: Any) -> Any:
        return {"type": default, **section} if isinstance(section, dict) else section

    return BeforeValidator(fill)


@dataclass(frozen=True)
class ScaledDown:
    """The value that `--shrink` takes in place of a field's own, as metadata of the field's `Annotated` type.

    Attributes:
        value: The field's value → the one to take.
        null: Whether null is replaced too.
    """

    value: Callable[[Any], Any]
    null: bool = False


def at_most(limit: int) -> ScaledDown:
    """The field's number or this one, whichever is smaller."""
    return ScaledDown(lambda value: min(value, limit))


def instead(value: Any) -> ScaledDown:
    """This value, whatever the field's is."""
    return ScaledDown(lambda _: value, null=True)
