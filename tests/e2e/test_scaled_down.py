"""The shipped recipes of real models, run with `--shrink`: no hub, no endpoint, no GPU."""

import json

import pytest

slow = pytest.mark.distributed  # one process each, but too long for the fast suite


@pytest.fixture(scope="module")
def pipeline(prism, tmp_path_factory):
    """A folder in which `prism run qwen3_vl_4b --shrink` has run."""
    folder = tmp_path_factory.mktemp("scaled_down")
    done = prism("run", "qwen3_vl_4b", "--shrink", cwd=folder)
    assert done.code == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("scaled down: ")], done.stderr
    return folder / "runs/qwen3_vl_4b-scaled-down"


def config(folder):
    return json.loads((folder / "config.json").read_text())


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


def test_the_pipeline_of_the_4b_recipes_runs_from_end_to_end(pipeline):
    assert all(status(pipeline / step) == "finished" for step in ("sft", "align", "rl", "eval"))
    measured = json.loads((pipeline / "eval/summary.json").read_text())["runs"]
    assert [run["id"] for run in measured] == ["sft", "align", "rl"]
    assert (pipeline / "report.html").is_file()


def test_the_discriminator_is_a_mixture_of_another_width_than_the_policy(pipeline):
    discriminator, policy = config(pipeline / "align/discriminator"), config(pipeline / "align/model")
    assert json.loads((pipeline / "align/discriminator/discriminator.json").read_text())["kind"] == "moe"
    text = discriminator["text_config"]
    assert (text["num_local_experts"], text["num_experts_per_tok"]) == (4, 2)
    assert (text["hidden_size"], policy["text_config"]["hidden_size"]) == (64, 80)


def test_the_discriminator_had_well_formed_responses_to_compare(pipeline):
    steps = [json.loads(line) for line in (pipeline / "align/metrics.jsonl").read_text().splitlines()]
    trained = [step for step in steps if "discriminator/accuracy/reasoning" in step]
    assert len(trained) == 2
    assert all(step["responses/malformed_fraction"] < 1 for step in trained)


def test_a_dry_run_writes_nothing(prism, tmp_path):
    done = prism("align", "qwen3_vl_8b", "--shrink", "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "runs/scaled_down_models/Qwen3-VL-2B-Instruct" in done.stdout


@slow
@pytest.mark.parametrize("algorithm", ["rl_dapo", "rl_gspo"])
def test_the_other_algorithms_run(pipeline, prism, algorithm):
    folder = pipeline.parents[1]
    start = ["--from", str(pipeline / "align"), "--output", f"runs/{algorithm}-scaled-down"]
    done = prism("rl", f"qwen3_vl_4b/{algorithm}", "--shrink", *start, cwd=folder)
    assert done.code == 0, done.stderr
    assert status(folder / f"runs/{algorithm}-scaled-down") == "finished"


@slow
def test_a_discriminator_is_made_and_warmed_up_on_its_own(pipeline, prism):
    folder = pipeline.parents[1]
    done = prism("discriminator", "warmup", "qwen3_vl_4b", "--shrink", "--from", str(pipeline / "sft"), cwd=folder)
    assert done.code == 0, done.stderr
    warm = folder / "runs/warmup-scaled-down/discriminator"
    start = ["--from", str(pipeline / "sft"), f"discriminator.path={warm}"]
    done = prism("align", "qwen3_vl_4b", "--shrink", *start, cwd=folder)
    assert done.code == 0, done.stderr
    assert not (folder / "runs/align-scaled-down/warmup").exists()


@slow
def test_demonstrations_are_collected(prism, tmp_path):
    done = prism("collect", "qwen3_vl_8b", "--shrink", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert status(tmp_path / "runs/collect-scaled-down") == "finished"


@slow
@pytest.mark.parametrize("name", ["qwen3_vl_8b", "qwen3_vl_8b/1gpu", "qwen3_vl_4b/1gpu", "qwen3_vl_4b/4gpu"])
def test_every_other_pipeline_runs_from_end_to_end(prism, tmp_path, name):
    done = prism("run", name, "--shrink", cwd=tmp_path)
    assert done.code == 0, done.stderr
    folder = tmp_path / f"runs/{name.replace('/', '_')}-scaled-down"
    assert all(status(folder / step) == "finished" for step in ("sft", "align", "rl", "eval"))
    tied = "8b" not in name
    assert config(folder / "rl/model")["tie_word_embeddings"] is tied
    assert (folder / "rl/adapter").is_dir() is ("1gpu" in name)
