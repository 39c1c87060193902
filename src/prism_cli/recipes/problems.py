"""Problems of a recipe in words: the key, the value, what is expected instead."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from prism_cli.recipes.fields import (
    annotation_at,
    child,
    chosen,
    keys,
    may_be_null,
    sections,
    type_word,
    value_at,
)
from prism_cli.recipes.section import Section
from prism_cli.recipes.sources import KeyPath

EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a section (key: value lines)",
    "model_type": "a section (key: value lines)",
    "model_attributes_type": "a section (key: value lines)",
}
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def validation_problems(error: ValidationError, recipe: type[Section], values: Any) -> Iterator[tuple[KeyPath, str]]:
    """Pydantic's problems as (path of the key, text).

    Args:
        error: From validating `values`.
        recipe: The type that was validated.
        values: The user's values.
    """
    for problem in error.errors(include_url=False):
        path = _path(recipe, values, problem["loc"])
        kind, found, context = problem["type"], problem["input"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            yield path, unknown_key(annotation_at(recipe, values, path[:-1]), values, path)
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            options = sections(annotation_at(recipe, values, path))
            found = f"found {describe(context['tag'])}" if "tag" in context else "which is missing"
            yield (
                (*path, "type"),
                f"expected {' or '.join(map(str, map(type_word, options)))}, {found}",
            )
        elif kind == "literal_error":
            yield path, f"expected {context['expected']}, found {describe(found)}"
        elif kind == "missing":
            yield path, "missing"
        elif kind == "value_error":
            yield path, str(context["error"])
        elif bound := next((b for b in BOUNDS if b in context), None):
            yield path, f"must be {BOUNDS[bound]} {context[bound]:g}, found {describe(found)}"
        elif kind in ("too_short", "too_long"):
            yield path, f"has {context['actual_length']} entries"
        elif kind in EXPECTED:
            null = ", or null" if may_be_null(annotation_at(recipe, values, path)) else ""
            yield path, f"expected {EXPECTED[kind]}{null}, found {describe(found)}"
        else:
            yield path, problem["msg"]


def unknown_key(annotation: Any, values: Any, path: KeyPath) -> str:
    """An unknown key in words, with the nearest name or the type of section that has the key."""
    key = str(path[-1])
    here = chosen(annotation, value_at(values, path[:-1]))
    owners = [str(type_word(section)) for section in sections(annotation) if key in keys(section)]
    if owners and here is not None:
        return f"a section of type {type_word(here)} has no such key (type {' or '.join(owners)} has)"
    return f"no such key{nearest(key, keys(here) if here else ())}"


def nearest(word: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    """` (did you mean …?)`, or nothing."""
    close = get_close_matches(word, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def describe(value: Any) -> str:
    """A value in words."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"text {value!r}" + (" (take the quotes off)" if _is_number(value) else "")
        case list() | tuple():
            return "a list"
        case dict():
            return "a section"
        case _:
            return f"{value}"


def _path(recipe: type[Section], values: Any, location: Sequence[str | int]) -> KeyPath:
    """The path of keys in the recipe; pydantic's location also contains the type at every union."""
    path: list[str | int] = []
    annotation: Any = recipe
    at_union = False
    for key in location:
        if at_union:  # `key` is the type, not a key
            at_union = False
            continue
        path.append(key)
        annotation, values = child(annotation, values, key), value_at(values, (key,))
        at_union = len(sections(annotation)) > 1
    return tuple(path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
