"""The method in one file for reading: it runs as it stands, and the policy comes nearer to the teacher."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/align_from_scratch.py"


@pytest.fixture(scope="module")
def printed():
    """What the example prints, in fewer steps than it takes by itself: enough to see it learn."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [str(EXAMPLE), "--sft-steps", "200", "--steps", "12"])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return out.getvalue()


def rows(text):
    """Name → numbers of each table line."""
    lines = re.findall(r"^(.*?\S)((?:\s+-?\d+\.\d+)+)$", text, re.M)
    return {name.strip(): [float(number) for number in numbers.split()] for name, numbers in lines}


@pytest.mark.slow
def test_the_discriminator_tells_teacher_from_policy_before_alignment(printed):
    perception, reasoning = map(float, re.findall(r"accuracy ([\d.]+) perception, ([\d.]+) reasoning", printed)[0])
    assert min(perception, reasoning) >= 0.75


@pytest.mark.slow
def test_each_table_line_of_alignment_has_all_numbers_finite(printed):
    steps = {name: numbers for name, numbers in rows(printed).items() if name.isdigit()}
    assert list(steps) == ["1", "5", "10"]
    for accuracy_perception, accuracy_reasoning, malformed, reward, perception, reasoning in steps.values():
        assert all(0 <= x <= 1 for x in (accuracy_perception, accuracy_reasoning, malformed, perception, reasoning))
        assert abs(reward) < 10, "scores are clipped there"


@pytest.mark.slow
def test_the_policy_comes_nearer_to_the_teacher(printed):
    table = rows(printed)
    (before, after) = table["reasoning equals the teacher's"]
    assert after > before + 0.1
    (before, after) = table["perception equals the teacher's"]
    assert after > before
    (before, after) = table["teacher's log-probability a token"]
    assert after > before + 0.03
    assert table["malformed"][1] < 0.15


def test_it_can_be_read_in_one_sitting():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 300
