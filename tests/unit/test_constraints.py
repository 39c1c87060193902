"""constraints.txt and pyproject.toml agree, and nothing but versions stands in the one that is pinned."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
PINNED = dict(line.split("==") for line in LINES)
# The extras that the Makefile installs with the file.
EXTRAS = re.findall(r'--constraint constraints\.txt --editable "\.\[(\w+)\]"', (ROOT / "Makefile").read_text())
DIRECT = [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra])]


def test_the_makefile_installs_the_extras_of_ci_with_it():
    assert EXTRAS == ["dev", "eval"]


@pytest.mark.parametrize("requirement", DIRECT)
def test_each_direct_dependency_is_pinned_inside_its_range(requirement):
    needed = Requirement(requirement)
    name = canonicalize_name(needed.name)
    assert name in PINNED, f"{name} is missing: make constraints"
    assert PINNED[name] in needed.specifier, f"{name} {PINNED[name]} is outside {needed.specifier}: make constraints"


def test_it_holds_versions_only():
    # No index address, no path, no hash, no machine's own build such as 2.13.0+cpu; sorted, so that changes are small.
    assert [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==\d[\w.]*", line)] == []
    assert sorted(PINNED) == list(PINNED)
    assert not {"prism-cli", "pip", "setuptools", "wheel"} & PINNED.keys()
