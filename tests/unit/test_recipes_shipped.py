"""The recipes users run first, and the page that documents every key."""

import re
from pathlib import Path

import pytest

from prism_cli.recipes import document
from prism_cli.recipes.load import load_recipe, load_step
from prism_cli.recipes.pipelines import steps_of
from prism_cli.recipes.sources import shipped, stage_of
from prism_cli.recipes.stages import RECIPES

ROOT = Path(__file__).parents[2]


def test_every_yaml_file_named_after_a_stage_is_shipped():
    assert {"tiny/sft", "tiny/align", "tiny/rl", "tiny/eval", "tiny/pipeline"} <= set(shipped())
    assert all(path.is_file() for path in shipped().values())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_loads(name):
    path = shipped()[name]
    recipe = load_recipe(stage_of(path), path)
    assert type(recipe) is RECIPES[stage_of(path)]
    for step in steps_of(recipe):
        assert type(load_step(step, path.parent)) is RECIPES[step.stage]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_begins_with_the_command_and_what_it_needs(name):
    first, second = shipped()[name].read_text(encoding="utf-8").splitlines()[:2]
    commands = "sft|align|rl|eval|drift|collect|data curate|discriminator warmup|run|compare"
    assert re.match(rf"# (.* )?prism ({commands}) ", first)
    assert second.startswith("# Needs ")


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("align.yaml", "align"),
        ("pipeline.yaml", "run"),
        ("rl_dapo.yaml", "rl"),
        ("weak-sft.yaml", "sft"),
        ("zero3.yaml", None),
    ],
)
def test_the_stage_stands_in_the_files_name(file, stage):
    assert stage_of(Path(file)) == stage


def test_the_page_of_keys_is_current():
    assert (ROOT / document.PAGE).read_text(encoding="utf-8") == document.page()


def test_every_key_of_every_section_is_documented():
    rows = [line for line in document.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_link_of_the_page_has_its_heading():
    text = document.page()
    headings = {re.sub(r"[.()]", "", title).replace(" ", "-") for title in re.findall(r"^## (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= headings
    assert len(RECIPES) == len(re.findall(r"^## .*\.yaml$", text, re.M))
