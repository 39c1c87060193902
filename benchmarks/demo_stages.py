"""Where the demo's time goes: `python benchmarks/demo_stages.py [FOLDER]` reads a finished run (runs/tiny)."""

import json
import sys
from pathlib import Path

from rich import get_console
from rich.table import Table


def main() -> None:
    """Prints each step's wall time, its steps, and its share of the whole."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny")
    manifests = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    manifests.sort(key=lambda manifest: manifest["created"])
    whole = sum(manifest["seconds"] for manifest in manifests)
    table = Table("step", "seconds", "share", "optimiser steps", "seconds a step")
    for manifest in manifests:
        steps = _steps(folder / manifest["id"] / "metrics.jsonl")
        a_step = f"{manifest['train_seconds'] / steps:.3f}" if steps else ""
        share = f"{manifest['seconds'] / whole:.0%}"
        table.add_row(manifest["id"], f"{manifest['seconds']:.0f}", share, str(steps or ""), a_step)
    get_console().print(table)


def _steps(path: Path) -> int:
    return max((json.loads(line)["step"] for line in path.read_text().splitlines()), default=0) if path.exists() else 0


if __name__ == "__main__":
    main()
