"""The shipped recipes of real models, run with `--shrink`: no hub, no endpoint, no GPU."""

import json

import pytest

slow = pytest.mark.distributed  # one process each, but too long for the fast suite


@pytest.fixture(scope="module")
def road(prism, tmp_path_factory):
    """A folder in which `prism run qwen3_vl_4b --shrink` has run."""
    folder = tmp_path_factory.mktemp("shrunken")
    done = prism("run", "qwen3_vl_4b", "--shrink", cwd=folder)
    assert done.code == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("shrunken: ")], done.stderr
    return folder / "runs/qwen3_vl_4b-shrunken"


def config(folder):
    return json.loads((folder / "config.json").read_text())


def status(folder):
    return json.loads((folder / "run.json").read_text())["status"]


def test_the_road_of_the_4b_recipes_runs_from_end_to_end(road):
    assert all(status(road / step) == "finished" for step in ("sft", "align", "rl", "eval"))
    measured = json.loads((road / "eval/summary.json").read_text())["runs"]
    assert [run["id"] for run in measured] == ["sft", "align", "rl"]
    assert (road / "report.html").is_file()


def test_the_discriminator_is_a_mixture_of_another_width_than_the_policy(road):
    own, policy = (config(road / f"align/{name}")["text_config"] for name in ("discriminator", "model"))
    assert json.loads((road / "align/discriminator/discriminator.json").read_text())["kind"] == "moe"
    assert (own["num_local_experts"], own["num_experts_per_tok"]) == (4, 2)
    assert (own["hidden_size"], policy["hidden_size"]) == (64, 80)


def test_the_discriminator_had_well_formed_responses_to_compare(road):
    steps = [json.loads(line) for line in (road / "align/metrics.jsonl").read_text().splitlines()]
    trained = [step for step in steps if "discriminator/accuracy/reasoning" in step]
    assert len(trained) == 2
    assert all(step["responses/malformed_fraction"] < 1 for step in trained)


def test_a_dry_run_writes_nothing(prism, tmp_path):
    done = prism("align", "qwen3_vl_8b", "--shrink", "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "runs/shrunken_models/Qwen3-VL-2B-Instruct" in done.stdout


@slow
@pytest.mark.parametrize("algorithm", ["rl_dapo", "rl_gspo"])
def test_the_other_algorithms_run(road, prism, algorithm):
    folder = road.parents[1]
    start = ["--from", str(road / "align"), "--output", f"runs/{algorithm}-shrunken"]
    done = prism("rl", f"qwen3_vl_4b/{algorithm}", "--shrink", *start, cwd=folder)
    assert done.code == 0, done.stderr
    assert status(folder / f"runs/{algorithm}-shrunken") == "finished"


@slow
def test_a_discriminator_is_made_and_warmed_up_on_its_own(road, prism):
    folder = road.parents[1]
    done = prism("discriminator", "warmup", "qwen3_vl_4b", "--shrink", "--from", str(road / "sft"), cwd=folder)
    assert done.code == 0, done.stderr
    warm = folder / "runs/warmup-shrunken/discriminator"
    start = ["--from", str(road / "sft"), f"discriminator.path={warm}"]
    done = prism("align", "qwen3_vl_4b", "--shrink", *start, cwd=folder)
    assert done.code == 0, done.stderr
    assert not (folder / "runs/align-shrunken/warmup").exists()


@slow
def test_demonstrations_are_collected(prism, tmp_path):
    done = prism("collect", "qwen3_vl_8b", "--shrink", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert status(tmp_path / "runs/collect-shrunken") == "finished"


@slow
@pytest.mark.parametrize("name", ["qwen3_vl_8b", "qwen3_vl_8b/1gpu", "qwen3_vl_4b/1gpu", "qwen3_vl_4b/4gpu"])
def test_every_other_road_runs_from_end_to_end(prism, tmp_path, name):
    done = prism("run", name, "--shrink", cwd=tmp_path)
    assert done.code == 0, done.stderr
    folder = tmp_path / f"runs/{name.replace('/', '_')}-shrunken"
    assert all(status(folder / step) == "finished" for step in ("sft", "align", "rl", "eval"))
    tied = "8b" not in name
    assert config(folder / "rl/model")["tie_word_embeddings"] is tied
    assert (folder / "rl/adapter").is_dir() is ("1gpu" in name)
