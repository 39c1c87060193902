"""Rows a second that `prism data check` looks at on one core: `python benchmarks/data_check.py`.

The rows have one 448 × 448 picture each, every one different: smooth shapes under sensor noise, which compress like
photographs. Decoding alone, in the same process, is the limit beside it.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from prism_cli.data.survey import check_source
from prism_cli.rewards.accuracy import is_correct

SIDE = 448
ROWS = {"jpg": 800, "png": 240}


def picture(seed: int) -> Image.Image:
    """A picture that no other seed gives."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    noisy = np.asarray(coarse) + random.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write(folder: Path, suffix: str, rows: int) -> Path:
    """A data set of that many rows."""
    path = folder / f"{suffix}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            picture(number).save(folder / f"{number}.{suffix}")
            fields = {"image": f"{number}.{suffix}", "question": f"How many? ({number})", "answer": str(number)}
            file.write(json.dumps(fields) + "\n")
    return path


def rates(rows: int, work: Callable[[], object]) -> str:
    """Rows a second of processor time and of wall time, the second of two runs."""
    work()
    processor, wall = time.process_time(), time.perf_counter()
    work()
    seconds = time.process_time() - processor, time.perf_counter() - wall
    return f"{rows / seconds[0]:6.0f} rows/s of processor time, {rows / seconds[1]:6.0f} of wall time"


def main() -> None:
    """Prints the rates of JPEG and PNG rows, checked and only decoded."""
    with tempfile.TemporaryDirectory() as name:
        for suffix, rows in ROWS.items():
            path = write(Path(name), suffix, rows)
            files = [Path(name) / f"{number}.{suffix}" for number in range(rows)]
            print(f"{suffix} checked      {rates(rows, lambda path=path: check_source(str(path), verify=is_correct))}")
            print(f"{suffix} only decoded {rates(rows, lambda files=files: [Image.open(f).load() for f in files])}")


if __name__ == "__main__":
    main()
