"""Which grammar a report reads responses by: that of the stage that declared it."""

import shutil
from pathlib import Path

import pytest

from prism_cli.assembly import report
from prism_cli.recipes.identity import differences, to_dict
from prism_cli.recipes.pipelines import PipelineRecipe, PipelineStep
from prism_cli.recipes.stages import AlignRecipe, EvalRecipe, SFTRecipe
from prism_cli.runs.folder import open_run
from prism_cli.runs.references import resolve_model

ONE_PART = {"parts": {"whole": {}}, "answer": None}


def finish(folder, stage, recipe, source=None):
    with open_run(Path(folder), stage, to_dict(recipe), "", differences, source=source).working() as run:
        run.model.mkdir(exist_ok=True)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A pipeline with an SFT run that has a grammar of its own, an align run from it, an evaluation of both."""
    monkeypatch.chdir(tmp_path)
    finish("runs/p", "run", PipelineRecipe(name="p", steps=(PipelineStep(stage="sft", recipe="sft.yaml"),)))
    finish("runs/p/sft", "sft", SFTRecipe.model_validate({"response": ONE_PART}))
    finish("runs/align", "align", AlignRecipe(), resolve_model("runs/p/sft")[1])
    finish("runs/eval", "eval", EvalRecipe(), {"runs": [resolve_model("runs/align")[1]]})
    finish("runs/other", "sft", SFTRecipe())


@pytest.mark.parametrize("folder", ["runs/p/sft", "runs/p", "runs/align", "runs/eval"])
def test_a_stage_is_read_by_the_grammar_of_the_run_it_goes_back_to(folder):
    assert list(report._response(Path(folder)).parts) == ["whole"]


def test_without_a_declaration_the_default_grammar_is_taken():
    assert list(report._response(Path("runs/other")).parts) == ["perception", "reasoning"]


def test_a_source_that_is_gone_is_no_error():
    shutil.rmtree("runs/p")
    assert list(report._response(Path("runs/align")).parts) == ["perception", "reasoning"]


@pytest.mark.parametrize("folder", ["runs/p/sft", "runs/align", "runs/eval"])
def test_a_single_stage_has_a_page(folder):
    assert report.write(Path(folder)) == Path(folder) / "report.html"
    assert "<html" in (Path(folder) / "report.html").read_text()
