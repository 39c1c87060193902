"""Files to open: how many files of `stages` and `assembly` one must know to understand a stage.

    python tools/files_to_open.py               # a table; exit code 1 where a limit is broken
    python tools/files_to_open.py align         # and the names of the files behind `prism align`

A stage's file and all of both rooms that it imports by name, directly or not, imports inside functions included.
"""

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
ROOMS = ("prism_cli.stages.", "prism_cli.assembly.")
MOST_FILES = {"sft": 13, "align": 18, "rl": 16, "eval": 15, "drift": 9, "collect": 9, "plan": 12}
MOST_LINES = 250


def import_graph(source: Path) -> dict[str, set[str]]:
    """Module → modules of the same source that it imports.

    Args:
        source: The folder that holds the package.
    """
    files = {
        ".".join(file.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): file
        for file in source.rglob("*.py")
    }
    return {name: _imports(ast.parse(file.read_text(encoding="utf-8")), set(files)) for name, file in files.items()}


def _imports(tree: ast.AST, modules: set[str]) -> set[str]:
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {name if name in modules else node.module for name in named}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    return imported & modules


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """A module and what it imports of the two rooms, directly or not."""
    reached, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [name for name in graph.get(module, ()) if name.startswith(ROOMS)]
    return reached


def main(stages: list[str]) -> int:
    """Prints the table, and the files behind the stages named; gives the exit code."""
    graph, broken = import_graph(SOURCE), False
    print(f"{'stage':10}{'files':>6}{'most':>6}")
    for stage, most in MOST_FILES.items():
        files = reachable(graph, f"prism_cli.stages.{stage}")
        broken |= len(files) > most
        print(f"{stage:10}{len(files):6}{most:6}{'  too many' if len(files) > most else ''}")
        if stage in stages:
            print("".join(f"  {name.removeprefix('prism_cli.')}\n" for name in sorted(files)), end="")
    for room in ROOMS:
        for file in sorted((SOURCE / room.replace(".", "/")).rglob("*.py")):
            if (lines := len(file.read_text(encoding="utf-8").splitlines())) > MOST_LINES:
                broken = True
                print(f"{file.relative_to(SOURCE.parent)}: {lines} lines, more than {MOST_LINES}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
