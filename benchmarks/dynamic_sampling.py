"""Dynamic sampling against none: DAPO on the shapes world from one finished SFT run, by updates and by rollouts.

The reward is accuracy alone, so that a group without variance is one that sampling drops; oversample is 1, so a prompt
is rolled out only where the batch still lacks groups. Both are measured on the same held-out questions.
Run: .venv/bin/python benchmarks/dynamic_sampling.py runs/sft
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

UPDATES, PROMPTS, ROLLOUTS = 40, 12, 8
REWARD = ("rewards={accuracy: 1.0, format: 0.0}", "eval_data=null", "checkpoint.evaluate_every=null")


def prism(*words: object) -> None:
    """Runs a command; what it says is shown only where it fails."""
    done = subprocess.run([sys.executable, "-m", "prism_cli", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def train(start: str, output: Path, rounds: int, steps: int) -> list[dict[str, Any]]:
    """The steps' metrics of a run."""
    algorithm = f"algorithm={{type: dapo, overlong_buffer: 0, oversample: 1, max_rounds: {rounds}}}"
    length = (f"max_steps={steps}", f"checkpoint={{every: {UPDATES}, keep: 9}}")
    size = (f"prompts_per_step={PROMPTS}", f"rollouts={ROLLOUTS}", f"micro_batch={PROMPTS * ROLLOUTS}")
    prism("rl", "tiny", "--from", start, "--output", output, algorithm, *REWARD, *length, *size)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def main(start: str) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sampled = train(start, folder / "sampled", 10, UPDATES)
        rounds = int(sum(step["sampling/rounds"] for step in sampled))
        plain = train(start, folder / "plain", 0, rounds)
        policies = [start, folder / "sampled", f"{folder / 'plain'}@{UPDATES}", folder / "plain"]
        if rounds == UPDATES:
            policies.pop()
        prism("eval", *policies, "tiny", "--output", folder / "eval", "data.size=512", "greedy=false", "teacher=null")
        found = json.loads((folder / "eval/summary.json").read_text(encoding="utf-8"))["runs"]
    accuracies = [run["metrics"]["accuracy/sampled"] for run in found]
    before, with_it, *without = accuracies
    informative = [PROMPTS * (1 - step["frac_reward_zero_std"]) for step in plain]
    print(f"accuracy before: {_shown(before)}")
    print(f"{'':32}{'updates':>8}{'rollouts':>10}{'groups a step':>15}  accuracy")
    _line("dynamic sampling", UPDATES, rounds, mean(step["sampling/kept"] for step in sampled), with_it)
    _line("none, as many updates", UPDATES, UPDATES, mean(informative[:UPDATES]), without[0])
    _line("none, as many rollouts", rounds, rounds, mean(informative), without[-1])


def _line(name: str, updates: int, batches: int, groups: float, accuracy: dict[str, float]) -> None:
    print(f"{name:32}{updates:8}{batches * PROMPTS * ROLLOUTS:10}{groups:15.1f}  {_shown(accuracy)}")


def _shown(accuracy: dict[str, float]) -> str:
    return f"{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})"


if __name__ == "__main__":
    main(sys.argv[1])
