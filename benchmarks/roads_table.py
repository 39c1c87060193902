"""What came out of `prism run tiny/roads_pipeline` with several seeds, as Markdown tables.

`python benchmarks/roads_table.py FOLDER...`, one finished pipeline folder a seed. First each policy's metrics, the mean
over seeds; then paired differences over the same questions, seed by seed. `all` marks a difference whose 95 % interval
lies on the same side of zero in every seed.
"""

import json
import statistics
import sys
from pathlib import Path

from prism_cli.evaluation.intervals import Interval, paired_difference
from prism_cli.stages.eval import read_samples

METRICS = {
    "accuracy/greedy": 100,
    "accuracy/sampled": 100,
    "perception/greedy": 100,
    "perception/sampled": 100,
    "reasoning/sampled": 100,
    "well_formed/sampled": 100,
    "length/sampled": 1,
    "teacher_logprob": 1,
}
COMPARED = ("accuracy/sampled", "perception/sampled", "teacher_logprob")
COMPARISONS = (
    ("rl_same_steps", "sft"),
    ("align", "sft"),
    ("align_rl", "rl_same_steps"),
    ("align_rl", "rl_same_compute"),
    ("sft_same_steps_rl", "align_rl"),
    ("sft_same_compute_rl", "align_rl"),
)


def main() -> None:
    """Prints both tables."""
    folders = [Path(name) / "eval" for name in sys.argv[1:]]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    print(f"{len(folders)} seeds, {summaries[0]['settings']['questions']} questions each.\n")
    _row("policy", *METRICS)
    _row(*["---"] * (1 + len(METRICS)))
    for place, run in enumerate(summaries[0]["runs"]):
        cells = [[summary["runs"][place]["metrics"][name]["value"] for summary in summaries] for name in METRICS]
        _row(run["id"], *(_mean(values, name) for values, name in zip(cells, METRICS, strict=True)))
    print()
    _row("difference", *COMPARED)
    _row(*["---"] * (1 + len(COMPARED)))
    for a, b in COMPARISONS:
        _row(f"{a} − {b}", *(_difference(folders, a, b, name) for name in COMPARED))


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")


def _mean(values: list[float], name: str) -> str:
    scale = METRICS[name]
    digits = 1 if scale == 100 or name.startswith("length") else 4
    return f"{statistics.mean(values) * scale:.{digits}f}"


def _difference(folders: list[Path], a: str, b: str, name: str) -> str:
    """Each seed's difference with half its interval, and whether all seeds agree."""
    found = [
        paired_difference(
            read_samples(folder / f"samples-{b}.jsonl")[name], read_samples(folder / f"samples-{a}.jsonl")[name]
        )
        for folder in folders
    ]
    agree = all(interval.low > 0 for interval in found) or all(interval.high < 0 for interval in found)
    return "; ".join(_shown(interval, METRICS[name]) for interval in found) + (" (all)" if agree else "")


def _shown(interval: Interval, scale: float) -> str:
    digits = 1 if scale == 100 else 4
    half = (interval.high - interval.low) / 2
    return f"{interval.value * scale:+.{digits}f} ± {half * scale:.{digits}f}"


if __name__ == "__main__":
    main()
