"""What an evaluation says of what it measured, and of what it could not."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from prism_cli.assembly.run_folder import run_names
from prism_cli.errors import RecipeError
from prism_cli.evaluation.summary import read_samples
from prism_cli.publishing.model_card import metric_row
from prism_cli.recipes.benchmarks import BenchmarksSection
from prism_cli.recipes.identity import differences
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.report.summary_table import benchmarks_table, differences_table, side_by_side, summary_table
from prism_cli.runs.folder import Run
from prism_cli.stages import eval as eval_stage
from prism_cli.stages.eval import GROWING, check
from prism_cli.stages.eval_summary import power_table, summed_up


def said(right, **more):
    return {"text": "…", "accuracy": float(right), "length": 9, **more}


def shown(table):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


@pytest.fixture
def folder(tmp_path):
    """A finished evaluation of one run: a request failed, an answer was not judged, a row has no answer."""
    lines = [
        {"id": "0", "greedy": said(1), "samples": [said(1), {"failed": "too long"}]},
        {"id": "1", "greedy": said(0), "samples": [said(0), said(1)]},
        {"id": "2", "greedy": {"text": "…", "unjudged": True, "length": 9}, "samples": [said(0), said(0)]},
        {"id": "3", "greedy": {"text": "…", "length": 9}, "samples": []},
    ]
    (tmp_path / "samples-sft.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "summary.json").write_text(json.dumps({"runs": [{"id": "sft", "metrics": {}}]}))
    return tmp_path


def test_what_failed_enters_no_metric_and_is_no_metric(folder):
    values = read_samples(folder / "samples-sft.jsonl")
    assert values == {
        "accuracy/greedy": [[1], [0], [], []],
        "length/greedy": [[9], [9], [9], [9]],
        "accuracy/sampled": [[1], [0, 1], [0, 0], []],
        "length/sampled": [[9], [9, 9], [9, 9], []],
    }


def test_power_counts_from_the_scatter_of_what_was_measured(folder):
    # Question means 1, 0.5, 0: deviation 0.5; another run that errs independently: 0.5 · √2 = 0.7071.
    # (2.80158 · 0.7071 / 0.1)² = 392.4; three questions find 2.80158 · 0.7071 / √3 = 1.1437.
    text = shown(power_table(folder, 10.0))
    assert "sampled, sft 393 3 114.4 points 70.7" in text


def test_a_difference_within_noise_is_called_that():
    metrics = {"accuracy/greedy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}}
    pair = {"a": "sft", "b": "rl", "metric": "accuracy/greedy"}
    runs = [{"id": name, "metrics": metrics} for name in ("sft", "rl")]
    noise = {"runs": runs, "pairs": [pair | {"difference": 0.021, "low": -0.01, "high": 0.052}]}
    clear = {"runs": runs, "pairs": [pair | {"difference": 0.08, "low": 0.05, "high": 0.11}]}
    assert "+2.1 ±3.1 within noise" in shown(differences_table(noise))
    assert "+8.0 ±3.0" in shown(differences_table(clear))
    assert "noise" not in shown(differences_table(clear))


def test_what_does_not_fit_beside_the_others_stands_below_and_nothing_is_cut():
    metrics = {"well_formed/sampled": {"value": 1.0, "low": 0.962, "high": 1.0, "n": 96}}
    runs = [{"id": f"a-longer-name-{i}", "metrics": metrics} for i in range(4)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(side_by_side(summary_table({"runs": runs}), 80))
    text = console.export_text()
    heads, rows = ([line for line in text.splitlines() if word in line] for word in ("longer", "well-formed"))
    assert [line.split() for line in heads] == [[f"a-longer-name-{i}" for i in range(3)], ["a-longer-name-3"]]
    assert [line.count("100.0 96.2–100.0") for line in rows] == [3, 1]
    assert text.count("96 questions") == 1


def test_a_summary_of_one_question_is_json_that_others_read(tmp_path):
    (tmp_path / "run.json").write_text('{"stage": "sft", "status": "finished", "recipe": {}, "finished": "now"}')
    (tmp_path / "model").mkdir()
    (tmp_path / "samples-sft.jsonl").write_text(json.dumps({"id": "0", "greedy": said(1), "samples": []}) + "\n")
    data = {"type": "world", "world": "shapes", "size": 1}
    recipe = EvalRecipe.model_validate({"runs": [str(tmp_path)], "data": data})
    summary = summed_up(recipe, {"sft": str(tmp_path)}, Run(tmp_path, {}))
    length = json.loads(json.dumps(summary, allow_nan=False))["runs"][0]["metrics"]["length/greedy"]
    assert length == {"value": 9.0, "low": None, "high": None, "n": 1}


def test_runs_of_one_name_and_id_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = ["s0/a/rl", "s1/a/rl", "s1/b/rl", "s1/b/sft"]
    for run in map(Path, runs):
        (run / "model").mkdir(parents=True)
        known = {"stage": run.name, "id": run.name, "name": run.parent.name, "status": "finished", "recipe": {}}
        (run / "run.json").write_text(json.dumps(known | {"finished": "now"}))
    assert list(run_names(runs)) == ["s0-a-rl", "s1-a-rl", "b-rl", "sft"]
    assert list(run_names(runs, {"s0/a/rl@": "rl"})) == ["rl", "s1-a-rl", "b-rl", "sft"]
    with pytest.raises(RecipeError, match="named alike: s0-a-rl"):
        run_names(["s0/a/rl", "s0/a/rl"])


def test_failures_stand_under_the_table():
    metrics = {"accuracy/greedy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}}
    run = {"id": "rl", "metrics": metrics, "failed": {"responses": 3, "generation": 2, "llm_judge": 1}}
    assert "3 failed, left out of every metric" in shown(summary_table({"runs": [run]}))


def test_what_has_no_interval_is_a_row_of_the_model_card_too():
    assert metric_row("failed", {"value": 3, "low": None, "high": None, "n": 24}) == ("failed", "3", "", 24)


def test_benchmarks_that_are_not_installed_are_planned_and_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("prism_cli.stages.eval_benchmarks.NEEDED", ("lmms_eval_of_no_name",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rl/model").mkdir(parents=True)
    manifest = {"stage": "rl", "id": "rl", "status": "finished", "finished": "2026", "recipe": {}, "name": "runs"}
    (tmp_path / "rl/run.json").write_text(json.dumps(manifest))
    recipe = EvalRecipe(runs=("rl",), benchmarks=BenchmarksSection(tasks=("mmmu",)), output="out")
    assert ("benchmarks need", "lmms_eval_of_no_name, not installed here") in check(recipe)
    with pytest.raises(RecipeError, match="not installed here: lmms_eval_of_no_name"):
        eval_stage.run(recipe)
    assert not (tmp_path / "out").exists()


def test_a_benchmarks_failed_questions_stand_beside_its_score():
    score = {"run": "rl", "task": "mmmu_val", "metric": "mmmu_acc", "value": 0.5, "low": 0.4, "high": 0.6}
    text = shown(benchmarks_table([score | {"questions": 98, "failed": 2}]))
    assert "mmmu_val, mmmu_acc 50.0 ±10.0 2 failed" in text


def test_an_evaluation_may_gain_runs_and_samples_and_lose_none():
    def changed(old, new):
        return differences(old, new, GROWING)

    old = {"runs": ["runs/sft"], "samples": 2, "seed": 0}
    assert changed(old, {"runs": ["runs/rl", "runs/sft"], "samples": 8, "seed": 0}) == []
    assert changed(old, {"runs": ["runs/rl"], "samples": 2, "seed": 0}) == ["runs.0: 'runs/sft' there, 'runs/rl' now"]
    assert changed(old, old | {"samples": 1}) == ["samples: 2 there, 1 now"]
    assert differences(old, old | {"samples": 4}) == ["samples: 2 there, 4 now"]
