"""Changes on top of a recipe file: overrides `key.path=value`, command-line options, a pipeline step's `set`."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from prism_cli.recipes.fields import annotation_at, child, chosen, keys, sections, type_word
from prism_cli.recipes.section import Section
from prism_cli.recipes.sources import KeyPath, parse_value

# Each says where to start; an option for one takes the file's other away.
STARTS = {"model": "from", "from": "model"}
# A cap is for the teacher there is: it makes no other one.
CAPS = ("teacher.max_calls", "teacher.max_usd")
# What may hold a key is not repeated in messages, which end up in logs.
SECRET = re.compile(r"(?<=://).*|(?<=token=).*", re.S)


class Change(NamedTuple):
    """One value to put in.

    Attributes:
        key: Dotted key.
        value: Plain value.
        origin: How messages name it: `override 'seed=1'`, `--seed`.
        wins: An option: it may turn a section of a union into the type that has its key.
    """

    key: str
    value: Any
    origin: str
    wins: bool = False


def parse_override(text: str) -> Change:
    """Reads `key.path=value`.

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


def apply(
    recipe: type[Section], values: dict[str, Any], changes: Sequence[Change]
) -> tuple[dict[KeyPath, str], list[str]]:
    """Puts changes into nested values, in place.

    A changed `type` comes first, whatever the order written: keys of the section that the new type doesn't share go.

    Returns:
        Path → origin of what was put in, and the problems met.
    """
    origins: dict[KeyPath, str] = {}
    problems = []
    changes = [part for change in changes for part in _parts(change)]
    for change in changes:
        if change.wins and change.key in STARTS:
            values.pop(STARTS[change.key], None)
        # Before any value goes in, so that values meant for the new type are not lost with the old one.
        if change.wins and change.key not in CAPS:
            _make_room(recipe, values, tuple(change.key.split(".")))
    for change in sorted(changes, key=_turn):
        path = tuple(change.key.split("."))
        try:
            section = _enter(recipe, values, path, origins, change.origin)
        except ValueError as error:
            problems.append(f"{change.origin}: {error}")
            continue
        annotation = annotation_at(recipe, values, path[:-1])
        if path[-1] == "type":
            _switch(annotation, section, change.value)
        elif change.wins and change.key not in CAPS:
            _become_owner(annotation, section, path[-1])
        section[path[-1]] = change.value
        origins[path] = change.origin
    return origins, problems


def _parts(change: Change) -> list[Change]:
    """An option for a whole section as the section, then its keys one by one."""
    if not change.wins or not isinstance(change.value, dict):
        return [change]
    return [change, *(change._replace(key=f"{change.key}.{key}", value=value) for key, value in change.value.items())]


def _turn(change: Change) -> tuple[bool, bool]:
    """A section that an option gives comes before overrides of its other keys; then types; options win in the end."""
    whole = change.wins and isinstance(change.value, dict)
    return change.wins and not whole, not whole and not change.key.endswith(".type")


def _make_room(recipe: type[Section], values: dict[str, Any], path: KeyPath) -> None:
    with suppress(ValueError):  # told when the value goes in
        section = _enter(recipe, values, path, {}, "")
        _become_owner(annotation_at(recipe, values, path[:-1]), section, str(path[-1]))


def _enter(annotation: Any, values: dict, path: KeyPath, origins: dict[KeyPath, str], origin: str) -> dict:
    """The dict that holds the path's last key; sections that are not written yet are begun."""
    for depth, key in enumerate(path[:-1]):
        inner = values.get(key)
        if inner is None:
            inner = _default(annotation, key)
            origins.setdefault(path[: depth + 1], origin)
        if not isinstance(inner, dict):
            kind = "a list" if isinstance(inner, list) else "no section"
            raise ValueError(f"{'.'.join(map(str, path[: depth + 1]))} is {kind}; set it as a whole")
        annotation = child(annotation, values, key)
        # A copy, because a YAML alias makes two keys share one dict.
        values[key] = values = dict(inner)
    return values


def _default(annotation: Any, key: str | int) -> dict:
    """What an unwritten section starts from: a mapping's default entries, else nothing (the type fills the rest in)."""
    section = chosen(annotation, {})
    name = keys(section).get(str(key)) if section else None
    default = section.model_fields[name].get_default(call_default_factory=True) if section and name else None
    if not isinstance(default, dict):
        return {}
    return {k: v.model_dump(mode="json") if isinstance(v, Section) else v for k, v in default.items()}


def _switch(annotation: Any, section: dict[str, Any], word: Any) -> None:
    """Drops the keys that the new type of a section does not share with the old one."""
    old, new = chosen(annotation, section), chosen(annotation, {"type": word})
    if old is None or new is None or old is new:
        return
    for key in list(section):
        here, there = old.model_fields.get(key), new.model_fields.get(key)
        if here is not None and (there is None or there.annotation != here.annotation):
            del section[key]


def _become_owner(annotation: Any, section: dict[str, Any], key: str) -> None:
    """Turns a section of a union into the one type that has `key`, unless it already has it."""
    owners = [owner for owner in sections(annotation) if key in keys(owner)]
    if len(owners) == 1 and chosen(annotation, section) is not owners[0]:
        section.clear()
        section["type"] = type_word(owners[0])


def put_into_step(change: Change, values: dict[str, Any]) -> bool:
    """Puts `STEP.key=value` on a pipeline into that step's `set`, in place; False when no step has that name."""
    step_id, _, key = change.key.partition(".")
    steps = values.get("steps")
    for step in steps if key and isinstance(steps, list) else ():
        if isinstance(step, dict) and step_id == (step.get("id") or step.get("stage")):
            written = step.get("set")
            step["set"] = {**(written if isinstance(written, dict) else {}), key: change.value}
            return True
    return False
