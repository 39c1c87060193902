"""What all sections of recipes are: strict, frozen, documented types.

Every default is the paper's value where the paper gives one, so a line in a recipe file is a decision. The string under
a field is its documentation. Alternatives are unions on `type`, so that a wrong combination can't be written.
"""

import os.path
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
