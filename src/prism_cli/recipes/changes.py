"""Changes on top of a recipe file, layer by layer; the last layer wins.

A dotted key changes one value. A mapping replaces the section under its key, and so does another `type`, but for what
the two types inherit from one base. Within a layer order matters only for a key that is given twice.
"""

import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from prism_cli.recipes.fields import child, chosen, keys
from prism_cli.recipes.section import Section
from prism_cli.recipes.sources import KeyPath, parse_value

# Each says where to start; a layer that gives one takes the other away from those before it.
STARTS = {"model": "from", "from": "model"}
# What may hold a key is not repeated in messages, which end up in logs.
SECRET = re.compile(r"(?<=://).*|(?<=token=).*", re.S)
AFTER_ALL_LINES = sys.maxsize

# Path of a key → (line in the file or AFTER_ALL_LINES, the place as messages name it).
Places = dict[KeyPath, tuple[int, str]]
Part = tuple[KeyPath, Any, str]


class Change(NamedTuple):
    """A plain value for a dotted key; `origin` names it in messages: `override 'seed=1'`, `--seed`."""

    key: str
    value: Any
    origin: str


def parse_override(text: str) -> Change:
    """The change that `key.path=value` asks for.

    Raises:
        ValueError: no key, or no YAML value; the text says which override.
    """
    key, equals, value = text.partition("=")
    shown = repr(SECRET.sub("…", text))
    if not equals or not re.fullmatch(r"\w[\w-]*(\.[\w-]+)*", key):
        raise ValueError(f"override {shown}: expected key.path=value")
    try:
        return Change(key, parse_value(value), f"override {shown}")
    except ValueError as error:
        raise ValueError(f"override {shown}: {error}") from None


def apply(recipe: type[Section], values: dict[Any, Any], layer: Iterable[Change], places: Places) -> None:
    """Puts a layer of changes into nested values and notes their places, both in place."""
    parts = [part for change in layer for part in _parts(change)]
    given = {path[0] for path, _, _ in parts}
    for start, other in STARTS.items():
        if start in given and other not in given:
            values.pop(other, None)
    for path, value, origin in sorted(parts, key=_turn):
        annotation, section = recipe, values
        for depth, key in enumerate(path[:-1], start=1):
            inner = section.get(key)
            if not isinstance(inner, dict):
                inner, places[path[:depth]] = _default_entries(annotation, key), (AFTER_ALL_LINES, origin)
            annotation = child(annotation, section, key)
            section[key] = section = dict(inner)  # a copy, because a YAML alias makes two keys share one dict
        if path[-1] == "type":
            _change_type(annotation, section, {path[-1]: value})
        section[path[-1]] = value
        places[path] = (AFTER_ALL_LINES, origin)


def _parts(change: Change) -> list[Part]:
    """A mapping as itself, then its entries one by one."""
    path, entries = tuple(change.key.split(".")), change.value.items() if isinstance(change.value, dict) else ()
    return [(path, *change[1:]), *(((*path, key), value, change.origin) for key, value in entries)]


def _turn(part: Part) -> tuple[int, int]:
    """Mappings come first, then types, then all else; outer ones before inner ones."""
    path, value, _ = part
    return 0 if isinstance(value, dict) else 1 if path[-1] == "type" else 2, len(path)


def _default_entries(annotation: Any, key: str | int) -> dict:
    """Default entries of an unwritten section: a mapping's, else none (the type fills the rest in)."""
    section = chosen(annotation, {})
    field = section and section.model_fields.get(keys(section).get(str(key), ""))
    default = field.get_default(call_default_factory=True) if field else None
    entries = default.items() if isinstance(default, dict) else ()
    return {name: entry.model_dump(mode="json") if isinstance(entry, Section) else entry for name, entry in entries}


def _change_type(annotation: Any, section: dict[Any, Any], tag: dict[Any, Any]) -> None:
    """Leaves of a section whose type changes what the two types inherit from one base."""
    old, new = chosen(annotation, section), chosen(annotation, tag)
    if old is not None and new is not None and old is not new:
        shared = keys(next(base for base in old.__mro__ if issubclass(new, base)))
        for key in section.keys() - shared.keys():
            del section[key]


def put_into_step(change: Change, values: dict[Any, Any]) -> bool:
    """Puts `STEP.key=value` on a pipeline into that step's `set`, in place; False when no step has that name."""
    step_id, _, key = change.key.partition(".")
    steps = values.get("steps")
    for step in steps if key and isinstance(steps, list) else ():
        if isinstance(step, dict) and step_id == (step.get("id") or step.get("stage")):
            written = step.get("set")
            step["set"] = {**(written if isinstance(written, dict) else {}), key: change.value}
            return True
    return False
