"""Every section of the check for machines with a GPU runs, at tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu_check") / "found.jsonl"
    command = [sys.executable, "benchmarks/gpu_check.py", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.returncode == 0, [line for line in lines if line["ok"] is False]
    return lines, done.stdout


def test_each_section_finds_something_and_says_it_in_a_line_and_in_the_table(findings):
    lines, printed = findings
    sections = list(dict.fromkeys(line["section"] for line in lines))
    assert sections == ["machine", "kernels", "patches", "attention", "policy", "discriminator", "commands", "peaks"]
    for line in lines:
        assert f"| {line['section']} | {line['check']} | " in printed


def test_the_stages_run_sharded_and_continue(findings):
    codes = {line["check"]: line["found"] for line in findings[0] if line["check"].endswith("exit code")}
    assert set(codes.values()) == {0}
    losses = {line["check"]: line["found"] for line in findings[0] if line["check"].endswith("losses")}
    assert losses["sft, ZeRO-2, continued: losses"][:2] == losses["sft, ZeRO-2: losses"]
    assert len(losses["sft, ZeRO-2, continued: losses"]) == 3
