"""Answers a second that the verifier judges on one core: `python benchmarks/rewards.py`.

Short answers are the hand-judged table's of up to 40 characters. *New* ones were never seen: every digit in them is
replaced by another, the same way in the accepted answers, and nothing is remembered. *Seen* ones are judged again, as
in RL, where the rollouts of a prompt repeat each other. Time is processor time, that of the process which compares
mathematics included; *rules* leaves it out.
"""

import csv
import random
import re
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from prism_cli.rewards.accuracy import is_correct
from prism_cli.rewards.mathematics import PROCESS

TABLE = Path(__file__).parents[1] / "tests/unit/answers.tsv"
SHORT, ROUNDS, SEED = 40, 5, 0
Case = tuple[str, list[str], str]


def short_cases() -> dict[str, list[Case]]:
    """Family → (answer, accepted, question) of its short answers."""
    cases: dict[str, list[Case]] = {}
    with open(TABLE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(row["answer"]) <= SHORT:
                case = (row["answer"], row["accepted"].split(" ‖ "), row["question"].replace("⏎", "\n"))
                cases.setdefault(row["family"], []).append(case)
    return cases


def renumbered(case: Case, draw: random.Random) -> Case:
    """The same case with other digits, the same on both sides."""
    digits = {str(digit): str(draw.randint(1, 9)) for digit in range(10)}

    def swap(text: str) -> str:
        return re.sub("[0-9]", lambda found: digits[found[0]], text)

    return swap(case[0]), [swap(text) for text in case[1]], case[2]


def new_rounds(cases: Sequence[Case], draw: random.Random) -> Iterable[Sequence[Case]]:
    """Rounds of answers that were never seen, before each of which all caches are emptied."""
    for _ in range(ROUNDS):
        for name, module in list(sys.modules.items()):
            for value in vars(module).values() if name.startswith("prism_cli.rewards") else ():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
        yield [renumbered(case, draw) for case in cases]


def worker_time() -> float:
    """Seconds used by the process that compares mathematics."""
    return sum(times.user + times.system for times in (child.cpu_times() for child in psutil.Process().children()))


def rates(rounds: Iterable[Sequence[Case]]) -> tuple[float, float]:
    """Answers a second with and without mathematics' own process, medians of the rounds."""
    seconds = []
    for cases in rounds:  # a round's cases are made before its clock starts
        worker, own = worker_time(), time.process_time()
        for answer, accepted, question in cases:
            is_correct(answer, accepted, question)
        own = max(time.process_time() - own, 1e-9)
        seconds.append(((own + worker_time() - worker) / len(cases), own / len(cases)))
    whole, rules = zip(*seconds, strict=True)
    return 1 / statistics.median(whole), 1 / statistics.median(rules)


def main() -> None:
    """Prints the rates by family, and over all short answers."""
    draw, families = random.Random(SEED), short_cases()
    families["all"] = [case for cases in families.values() for case in cases]
    rates([families["all"]])
    heads = "".join(f"{head:>9}" for head in ("new", "rules", "seen"))
    print(f"{'answers/s a core':32}{heads}   medians of {ROUNDS}; math-verify")
    for name, cases in families.items():
        asked = PROCESS.asked
        new, rules = rates(new_rounds(cases, draw))
        share = (PROCESS.asked - asked) / (ROUNDS * len(cases))
        seen, _ = rates(cases * (1 + 2000 // len(cases)) for _ in range(ROUNDS))
        print(
            f"{name:14}{len(cases):4} short answers{new:9,.0f} {rules:8,.0f}{seen:9,.0f}   {share:.0%} ask math-verify"
        )


if __name__ == "__main__":
    main()
