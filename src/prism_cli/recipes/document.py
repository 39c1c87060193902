"""docs/recipes.md, generated from the recipe types: every key with its type, default and meaning.

`python -m prism_cli.recipes.document --write` writes it, `--check` fails when it is not current.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from prism_cli.recipes.fields import description, is_usual, keys, sections, type_word
from prism_cli.recipes.identity import FREE_KEYS
from prism_cli.recipes.section import Section
from prism_cli.recipes.sources import file_name
from prism_cli.recipes.stages import RECIPES

PAGE = Path("docs/recipes.md")
WORDS = {int: "whole number", float: "number", str: "text", bool: "true/false", NoneType: "null", Any: "any"}
SYMBOLS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
INTRODUCTION = f"""# Recipes

<!-- Written by `python -m prism_cli.recipes.document --write` from src/prism_cli/recipes. Do not edit. -->

A recipe is a YAML 1.2 file, one for each stage. Keys have the paper's values as defaults, so a file only needs what
differs. `prism recipes list` lists the shipped recipes, `prism align tiny --dry-run` prints one with every key filled
in, `prism recipes check FILE` reports every error in a file.

Any key can be set on the command line, values in YAML: `prism align tiny optimizer.learning_rate=2e-6 max_steps=20`; on
a pipeline as `STEP.key=value`. The layers are the recipe file, a pipeline step's `set`, and the command line, where an
option such as `--max-steps` wins over `max_steps=20`; the last layer wins. A dotted key changes one value. A mapping
replaces the section (`launch={{}}` gives its defaults). A changed `type` replaces it too, except for keys that all
discriminators, or all live teachers, have in common. `model` and `from` exclude each other: the last layer that gives
one of them decides.

Running the same command on the same folder continues the run; a different recipe is refused. These keys may change
between two starts: {", ".join(f"`{key}`" for key in FREE_KEYS)}, and `max_steps` may grow.
"""


def page() -> str:
    """The whole page as Markdown."""
    groups: dict[tuple[type[Section], ...], str] = {}
    parts = [INTRODUCTION]
    for recipe in RECIPES.values():
        for group, title in _groups(recipe, ""):
            groups.setdefault(group, title)
    for stage, recipe in RECIPES.items():
        parts.append(f"## {file_name(stage)}\n\n{_docstring(recipe)}\n\n{_table(recipe, groups)}")
    for group, title in groups.items():
        parts.append(f"## {title}\n\n" + "\n\n".join(_section(section, groups) for section in group))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _groups(recipe: type[Section], prefix: str) -> Iterator[tuple[tuple[type[Section], ...], str]]:
    """Every section (or union of sections) below a recipe with its heading, in order of appearance."""
    for key, name in keys(recipe).items():
        annotation = recipe.model_fields[name].annotation
        inside = [group for inner in get_args(annotation) if (group := sections(inner))]  # of a list or mapping
        for group in [sections(annotation)] if sections(annotation) else inside:
            yield group, f"{prefix}{key}" + (" (sft)" if group[0].__name__.startswith("SFT") else "")
            for section in group:
                yield from _groups(section, f"{prefix}{key}.")


def _section(section: type[Section], groups: dict) -> str:
    word = type_word(section)
    heading = f"### type: {word}{' (default)' if is_usual(section) else ''}\n\n" if word else ""
    return heading + _docstring(section) + "\n\n" + _table(section, groups)


def _table(section: type[Section], groups: dict) -> str:
    rows = [
        f"| `{key}` | {_type(section.model_fields[name], groups)} | {_default(section.model_fields[name])} "
        f"| {description(section, name).replace('<', '&lt;')} |"
        for key, name in keys(section).items()
        if name != "type"
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) if rows else ""


def _type(field: FieldInfo, groups: dict) -> str:
    bounds = [(symbol, getattr(bound, name, None)) for bound in field.metadata for name, symbol in SYMBOLS.items()]
    return " ".join([_name(field.annotation, groups), *(f"{s} {value:g}" for s, value in bounds if value is not None)])


def _name(annotation: Any, groups: dict) -> str:
    """A type in words; a section links to its heading."""
    if found := sections(annotation):
        title = groups[found]
        null = " or null" if NoneType in get_args(annotation) else ""
        return f"[{title}](#{title.translate(str.maketrans(' ', '-', '.()'))}){null}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin is tuple:
        return f"list of {_name(arguments[0], groups)}"
    if origin is dict:
        return f"name → {_name(arguments[1], groups)}"
    if hasattr(annotation, "__metadata__"):  # a constrained number
        return _type(FieldInfo.from_annotation(annotation), groups)
    if arguments:
        return " or ".join(_name(a, groups) for a in arguments)
    return WORDS[annotation]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if isinstance(value, Section):
        return f"`{type_word(type(value))}`" if type_word(type(value)) else "its defaults"
    if isinstance(value, dict) and value:
        return ", ".join(f"`{name}`" for name in value)
    if isinstance(value, dict | tuple):
        return "none"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def _docstring(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def write_or_check(path: Path, text: str, arguments: list[str]) -> int:
    """Writes a generated page (`--write`), or checks that it is current (`--check`); the exit code."""
    if arguments == ["--write"]:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path} is not current: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), sys.argv[1:]))
