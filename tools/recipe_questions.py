"""Questions put to recipes: where code below `assembly` still asks a recipe or a section of one what it is.

    python tools/recipe_questions.py            # file and line of what breaks a limit; exit code 1 if anything does
    python tools/recipe_questions.py --report   # all counts, exit code 0

A recipe is resolved once, in `assembly`, into values of known type. Read from the source by names: `recipe`, `section`,
`resolved`, names that end in `_recipe` or `_section`, their attributes, variables set to these, and parameters
annotated with a class of `prism_cli.recipes`.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src/prism_cli"
KINDS = {
    "question": "isinstance, getattr, hasattr, type(), match or .type == put to a recipe or a section",
    "untyped": "parameter `recipe` or `section` of type Any, or of none",
    "cast": 'cast("Policy", …)',
    "assert": "assert whose message says that a check refuses the case",
    "import": "prism_cli.recipes imported outside cli, stages, assembly and recipes",
}
RECIPE_ROOMS = {"cli", "stages", "assembly", "recipes"}
# Inside assembly, in all: one `match` a union of the recipes, and what else can't be had otherwise.
MOST_QUESTIONS_IN_ASSEMBLY = 20
NAMES = {"recipe", "section", "resolved"}


class Place(NamedTuple):
    """A line of the source.

    Attributes:
        kind: One of `KINDS`.
        path: Below src/prism_cli.
        line: Counted from 1.
        code: What stands there, shortened.
    """

    kind: str
    path: str
    line: int
    code: str

    @property
    def room(self) -> str:
        """The folder below src/prism_cli; for a module beside the rooms its file's name."""
        return self.path.split("/")[0]


def places(path: str, source: str) -> list[Place]:
    """All places of a module, in the order of its lines.

    Args:
        path: Below src/prism_cli, with slashes.
        source: Its text.
    """
    tree = ast.parse(source)
    outside = path.split("/")[0] not in RECIPE_ROOMS
    classes = {alias.asname or alias.name for node in _recipe_imports(tree) for alias in node.names}
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    spotted = {(kind, node) for scope in [tree, *scopes] for kind, node in _in_scope(scope, classes)}
    spotted |= {("import", node) for node in _recipe_imports(tree) if outside}
    lines = source.splitlines()
    return sorted(
        (Place(kind, path, node.lineno, lines[node.lineno - 1].strip()[:90]) for kind, node in spotted),
        key=lambda place: (place.line, place.kind),
    )


def _recipe_imports(tree: ast.AST) -> Iterator[ast.ImportFrom | ast.Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            named = {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            named = {alias.name for alias in node.names}
        else:
            continue
        if any(f"{name}.".startswith("prism_cli.recipes.") for name in named):
            yield node


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module or function; of functions inside it only that they are there."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _in_scope(scope: ast.AST, classes: set[str]) -> Iterator[tuple[str, ast.AST]]:
    known = set(NAMES)
    if not isinstance(scope, ast.Module):
        arguments = scope.args  # type: ignore[attr-defined]
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            if _names(argument.annotation) & classes:
                known.add(argument.arg)
            untyped = _is_any(argument.annotation) if argument.annotation else not isinstance(scope, ast.Lambda)
            if untyped and _is_named_so(argument.arg, NAMES):
                yield "untyped", argument
    nodes = list(_own_nodes(scope))
    for node in sorted((node for node in nodes if isinstance(node, ast.Assign)), key=lambda node: node.lineno):
        if isinstance(node.targets[0], ast.Name) and _is_recipe(node.value, known):
            known.add(node.targets[0].id)
    for node in nodes:
        if kind := _kind(node, known, classes):
            yield kind, node


def _kind(node: ast.AST, known: set[str], classes: set[str]) -> str | None:
    match node:
        case ast.Call(func=ast.Name("isinstance"), args=[subject, against]):
            # A mapping is no recipe but the JSON of a finished run's.
            asked = _names(against) != {"Mapping"} and (_is_recipe(subject, known) or _names(against) & classes)
        case ast.Call(func=ast.Name("getattr" | "hasattr" | "type"), args=[subject, *_]):
            asked = _is_recipe(subject, known)
        case ast.Match():
            asked = _is_recipe(node.subject, known) or any(_names(case.pattern) & classes for case in node.cases)
        case ast.Compare():
            sides = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Attribute)]
            asked = any(side.attr == "type" and _is_recipe(side.value, known) for side in sides)
        case ast.Call(func=ast.Name("cast"), args=[ast.Constant("Policy") | ast.Name("Policy"), *_]):
            return "cast"
        case ast.Assert(msg=ast.expr() as message):
            return "assert" if "refuse" in ast.unparse(message) else None
        case _:
            return None
    return "question" if asked else None


def _is_recipe(node: ast.AST, known: set[str]) -> bool:
    """Whether an expression is a recipe or a section by its name, such as `self.recipe.teacher`."""
    if isinstance(node, ast.Attribute):
        return _is_named_so(node.attr, NAMES) or _is_recipe(node.value, known)
    return isinstance(node, ast.Name) and _is_named_so(node.id, known)


def _is_named_so(name: str, known: set[str]) -> bool:
    return name.lstrip("_") in known or name in known or name.endswith(("_recipe", "_section"))


def _is_any(annotation: ast.AST) -> bool:
    """Whether an annotation is Any, alone or in a union; dict[str, Any] is the JSON of a finished run's recipe."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):
        return _is_any(annotation.left) or _is_any(annotation.right)
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def _names(node: ast.AST | None) -> set[str]:
    """All names in an expression, annotations in quotes too."""
    names: set[str] = set()
    for inner in ast.walk(node) if node else ():
        if isinstance(inner, ast.Name):
            names.add(inner.id)
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            names |= set(inner.value.replace("|", " ").replace("[", " ").replace("]", " ").split())
    return names


def over_limits(places: list[Place]) -> list[Place]:
    """Places that no limit allows: any outside recipes, but `MOST_QUESTIONS_IN_ASSEMBLY` questions in assembly."""
    in_assembly = [place for place in places if place.kind == "question" and place.room == "assembly"]
    allowed = in_assembly if len(in_assembly) <= MOST_QUESTIONS_IN_ASSEMBLY else []
    return [place for place in places if place.room != "recipes" and place not in allowed]


def main(arguments: list[str]) -> int:
    """Prints what breaks a limit, or all counts; gives the exit code."""
    modules = sorted(SOURCE.rglob("*.py"))
    all_places = [
        place
        for module in modules
        for place in places(module.relative_to(SOURCE).as_posix(), module.read_text(encoding="utf-8"))
    ]
    if arguments == ["--report"]:
        counts = Counter((place.kind, place.room) for place in all_places)
        for (kind, room), count in sorted(counts.items()):
            print(f"{kind:10}{room:16}{count:5}")
        return 0
    broken = over_limits(all_places)
    for place in broken:
        print(f"src/prism_cli/{place.path}:{place.line}  {place.kind}  {place.code}")
    for kind, count in Counter(place.kind for place in broken).items():
        print(f"{count} × {kind}: {KINDS[kind]}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
