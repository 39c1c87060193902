"""How long `prism --help` takes, against an empty Python: `python benchmarks/cli_startup.py`."""

import statistics
import subprocess
import sys
import time

RUNS = 10


def median_seconds(command: list[str]) -> float:
    """Median wall time of RUNS runs, in seconds; one more run before warms the file cache."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Prints both medians and their ratio."""
    empty = median_seconds([sys.executable, "-c", "pass"])
    prism = median_seconds([sys.executable, "-m", "prism_cli", "--help"])
    print(f"prism --help   {prism:.3f} s")
    print(f"python -c pass {empty:.3f} s")
    print(f"ratio          {prism / empty:.1f}")


if __name__ == "__main__":
    main()
