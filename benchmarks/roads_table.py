"""What came out of `prism run tiny/roads_pipeline` with several seeds: `python benchmarks/roads_table.py FOLDER...`.

One column a policy: each metric's mean over seeds, then paired differences over the same questions, seed by seed. A
difference counts as found when every seed's 95 % interval lies on the same side of zero.
"""

import json
import statistics
import sys
from pathlib import Path

from rich import get_console
from rich.table import Table

from prism_cli.evaluation.intervals import Interval, paired_difference

METRICS = ("accuracy", "perception", "reasoning", "caption_distance", "well_formed", "length")
COMPARED = (
    ("align", "sft"),
    ("align_rl", "rl_same_steps"),
    ("align_rl", "rl_same_compute"),
    ("sft_same_steps_rl", "align_rl"),
    ("sft_same_compute_rl", "align_rl"),
    ("rl_same_steps", "sft"),
)


def main() -> None:
    """Prints the table of means over seeds and the table of paired differences."""
    folders = [Path(name) for name in sys.argv[1:]]
    summaries = [json.loads((folder / "eval" / "summary.json").read_text()) for folder in folders]
    print(f"{len(folders)} seeds, {summaries[0]['settings']['questions']} questions each\n")
    names = [run["id"] for run in summaries[0]["runs"]]
    columns = [f"{metric}/{decoding}" for metric in METRICS for decoding in ("greedy", "sampled")] + ["teacher_logprob"]
    _means(names, columns, summaries)
    _differences(folders, columns)


def _means(names: list[str], columns: list[str], summaries: list[dict]) -> None:
    table = Table("metric", *names, title="mean over seeds (each seed)")
    for column in columns:
        cells = []
        for place in range(len(names)):
            values = [summary["runs"][place]["metrics"][column]["value"] for summary in summaries]
            cells.append(f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        table.add_row(column, *cells)
    get_console().print(table, soft_wrap=True)


def _differences(folders: list[Path], columns: list[str]) -> None:
    pairs = [f"{a} − {b}" for a, b in COMPARED]
    table = Table(
        "metric", *pairs, title="paired difference, each seed [95 %]; * all seeds agree", title_justify="left"
    )
    values = {(folder, name): _values(folder, name) for folder in folders for pair in COMPARED for name in pair}
    for column in columns:
        cells = []
        for a, b in COMPARED:
            found = [paired_difference(values[f, b][column], values[f, a][column]) for f in folders]
            agree = all(i.low > 0 for i in found) or all(i.high < 0 for i in found)
            cells.append("; ".join(map(_shown, found)) + (" *" if agree else ""))
        table.add_row(column, *cells)
    get_console().print(table, soft_wrap=True)


def _shown(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _values(folder: Path, name: str) -> dict[str, list[list[float]]]:
    from prism_cli.stages.eval import read_samples

    return read_samples(folder / "eval" / f"samples-{name}.jsonl")


if __name__ == "__main__":
    main()
