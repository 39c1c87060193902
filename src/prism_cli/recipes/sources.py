"""Recipe files: found by path, folder or shipped name, read with the line of every key."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from prism_cli.errors import RecipeError

STAGES = ("sft", "align", "rl", "eval", "drift", "collect", "curate", "warmup", "run", "compare")
KeyPath = tuple[str | int, ...]


class Source(NamedTuple):
    """The content of a recipe file.

    Attributes:
        name: File name for messages.
        values: Nested plain values.
        lines: Path of a key → its line, from 1.
    """

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]


def file_name(stage: str) -> str:
    """The usual name of a stage's recipe file."""
    return {"run": "pipeline.yaml", "compare": "study.yaml"}.get(stage, f"{stage}.yaml")


def command_of(stage: str) -> str:
    """A stage's command without `prism`."""
    return {"warmup": "discriminator warmup", "curate": "data curate"}.get(stage, stage)


def stage_of(path: Path) -> str | None:
    """The stage of a recipe file, from a word in its name: align.yaml, align_weak_teacher.yaml, pipeline.yaml,
    study.yaml; in a folder `studies` every file is a study."""
    if path.parent.name == "studies":
        return "compare"
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((stage for stage in STAGES if Path(file_name(stage)).stem in words), None)


def shipped() -> dict[str, Path]:
    """Name → file of the shipped recipes: `tiny/align`, `tiny/pipeline`, …"""
    package = Path(__file__).parents[1]
    # An editable install has no copy in the package; its recipes lie beside src.
    folders = [package / "shipped_recipes", package.parents[1] / "recipes"]
    folder = next((f for f in folders if f.is_dir()), folders[0])
    files = [path for path in sorted(folder.rglob("*.yaml")) if stage_of(path)]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def find_recipe(stage: str, source: str | Path | None) -> Path | None:
    """The recipe file that `source` names for a stage; None without a source and without a file here.

    Args:
        stage: One of STAGES.
        source: A file, a folder that holds the stage's file, a shipped name (`tiny`, `tiny/align`), or None for the
            stage's file in the current folder.

    Raises:
        RecipeError: there is no such recipe.
    """
    if source is None:
        return Path(file_name(stage)) if Path(file_name(stage)).is_file() else None
    path, known = Path(source), shipped()
    in_set = f"{source}/{Path(file_name(stage)).stem}"
    for candidate in (path, path / file_name(stage), known.get(in_set), known.get(str(source))):
        if candidate is not None and candidate.is_file():
            return candidate
    suffix = f"/{Path(file_name(stage)).stem}"
    names = ", ".join(name.removesuffix(suffix) for name in known if name.endswith(suffix))
    kinds = "neither a run folder, nor a file" if stage in ("eval", "drift") else "neither a file"
    raise RecipeError(
        f"no recipe {str(source)!r} for `prism {command_of(stage)}`: {kinds}, nor a folder with {file_name(stage)}, "
        "nor a shipped name",
        f"shipped for it: {names or 'none'}",
    )


def read(path: Path) -> Source:
    """Reads a recipe file.

    Raises:
        RecipeError: not readable, not YAML, a key twice, or not a mapping at the top; the message has the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: can't be read: {error.strerror}", "check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})", "a recipe is a YAML file") from None
    try:
        node = _yaml().compose(io.StringIO(text))
        lines: dict[KeyPath, int] = {}
        if repeated := [f"{path}:{problem}" for problem in _locate(node, (), lines, set())]:
            raise RecipeError("\n".join(repeated), "keep one of the two")
        values = _yaml().load(text)
    except YAMLError as error:
        raise RecipeError(f"{path}:{_explain(error)}", "mend the YAML at this line") from None
    if not isinstance(values, dict | None):
        found = type(values).__name__
        raise RecipeError(f"{path}:1: expected `key: value` lines, found {found}", "see docs/recipes.md")
    return Source(str(path), values or {}, lines)


def parse_value(text: str) -> Any:
    """Reads one YAML 1.2 value, as an override gives it.

    Raises:
        ValueError: not a YAML value.
    """
    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise ValueError(f"not a YAML value: {_explain(error).partition(': ')[2]}") from None


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _locate(node: Node | None, path: KeyPath, lines: dict[KeyPath, int], seen: set[int]) -> Iterator[str]:
    """Fills `lines` and yields a problem for every duplicate key."""
    if id(node) in seen:  # an alias; its keys keep the lines of the anchor
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        here: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                yield f"{line}: a key must be a word"
                continue
            if key in here:
                yield f"{line}: {'.'.join(map(str, (*path, key)))}: stands here and in line {here[key]}"
            here.setdefault(key, line)
            lines.setdefault((*path, key), line)
            yield from _locate(value_node, (*path, key), lines, seen)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _locate(item, (*path, index), lines, seen)


def _explain(error: YAMLError) -> str:
    """`LINE: what is wrong`, on one line."""
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        text = ", ".join(part for part in (error.context, error.problem) if part)
        return f"{mark.line + 1 if mark else 1}: {' '.join(text.split())}"
    return f"1: {' '.join(str(error).split())}"
