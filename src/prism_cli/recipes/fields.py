"""Fields of recipe types: their keys, sections, unions, metadata and documentation."""

from collections.abc import Iterator, Sequence
from itertools import compress
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo

from prism_cli.recipes.section import Section

T = TypeVar("T")


def sections(annotation: Any) -> tuple[type[Section], ...]:
    """The section types of a value: several for a union, none for a plain value or a container."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    if get_origin(annotation) in (dict, tuple):
        return ()
    return tuple(section for inner in get_args(annotation) for section in sections(inner))


def type_word(section: type[Section]) -> str | None:
    """The word under `type` of a section of a union, else None."""
    field = section.model_fields.get("type")
    return get_args(field.annotation)[0] if field else None


def is_usual(section: type[Section]) -> bool:
    """True for the section of a union that is taken where `type` is left out."""
    field = section.model_fields.get("type")
    return field is not None and not field.is_required()


def chosen(annotation: Any, value: Any) -> type[Section] | None:
    """The section type of `value`; without `type` the usual one of the union, or None if it has no usual one."""
    options = sections(annotation)
    if len(options) < 2:
        return options[0] if options else None
    word = value.get("type") if isinstance(value, dict) else None
    fits = (is_usual(section) if word is None else type_word(section) == word for section in options)
    return next(compress(options, fits), None)


def keys(section: type[Section]) -> dict[str, str]:
    """Key in recipes → name of the field."""
    return {field.alias or name: name for name, field in section.model_fields.items()}


def child(annotation: Any, value: Any, key: str | int) -> Any:
    """The annotation of `key` in `value`; None for an unknown key."""
    section = chosen(annotation, value)
    if section is not None:
        name = keys(section).get(str(key))
        return None if name is None else section.model_fields[name].annotation
    for inner in (annotation, *get_args(annotation)):
        if get_origin(inner) is dict:
            return get_args(inner)[1]
        if get_origin(inner) is tuple:
            return get_args(inner)[0]
    return None


def annotation_at(recipe: type[Section], values: Any, path: Sequence[str | int]) -> Any:
    """The annotation at a path, given the types of sections in `values`."""
    annotation: Any = recipe
    for key in path:
        annotation = child(annotation, values, key)
        values = value_at(values, (key,))
    return annotation


def value_at(values: Any, path: Sequence[str | int]) -> Any:
    """The value at a path in nested dicts and lists, or None."""
    for key in path:
        if isinstance(values, dict):
            values = values.get(key)
        elif isinstance(values, list) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            return None
    return values


def may_be_null(annotation: Any) -> bool:
    """True if null is allowed."""
    return annotation is None or NoneType in get_args(annotation)


def metadata(section: type[Section], name: str, kind: type[T]) -> T | None:
    """The metadata of a kind in a field's `Annotated` type, or None."""
    return next((one for field in _declared(section, name) for one in field.metadata if isinstance(one, kind)), None)


def description(section: type[Section], name: str) -> str:
    """A field's documentation."""
    return next((" ".join(field.description.split()) for field in _declared(section, name) if field.description), "")


def _declared(section: type[Section], name: str) -> Iterator[FieldInfo]:
    """A field, then those of the same name in the base classes: a field that only changes a default repeats nothing."""
    for base in section.__mro__:
        if issubclass(base, Section) and name in base.model_fields:
            yield base.model_fields[name]
