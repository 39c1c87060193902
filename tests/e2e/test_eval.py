"""`prism eval`: killed and continued, grown, and judged by a model that gives no verdict on some answers."""

import json
import shutil
import signal

import pytest

from tests.faulty_endpoint import FaultyEndpoint, answer

SAMPLING = "prism_cli.evaluation.sampling:sample_responses"
# 24 questions in lots of 8: three lots a pass.
SMALL = ["tiny", "data.size=24", "batch_size=8", "max_response_tokens=48", "teacher=null", "temperature=1.3"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def whole(prism, trained, tmp_path_factory):
    """A folder with an evaluation that was never stopped: greedy and two samples, as `runs/eval`."""
    folder = tmp_path_factory.mktemp("eval")
    done = prism("eval", trained, *SMALL, "samples=2", cwd=folder)
    assert done.code == 0, done.stderr
    (folder / "shown").write_text(done.stdout)
    return folder


def test_a_killed_evaluation_loses_a_lot_and_ends_as_if_it_was_never_stopped(prism, trained, whole):
    order = ["eval", trained, *SMALL, "samples=2", "--output", "killed"]
    assert prism(*order, cwd=whole, kill=(SAMPLING, 6)).code == -signal.SIGKILL
    partial = whole / "killed/responses-sft.jsonl"
    assert len(lines(partial)) == 5 * 8
    with open(partial, "a") as file:
        file.write('{"pass": "samples/0", "text": "a lot that a ki')
    done = prism(*order, cwd=whole)
    assert done.code == 0, done.stderr
    assert (whole / "killed/samples-sft.jsonl").read_bytes() == (whole / "runs/eval/samples-sft.jsonl").read_bytes()
    assert not partial.exists()


def test_an_evaluation_grows_by_samples_and_by_a_run_and_keeps_what_it_has(prism, trained, whole):
    shutil.copytree(whole / "runs/eval", whole / "grown")
    other = whole / "other/later"
    other.mkdir(parents=True)
    (other / "model").symlink_to(trained / "model")
    manifest = json.loads((trained / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(manifest | {"id": "later"}))
    before = lines(whole / "grown/samples-sft.jsonl")
    done = prism("eval", "grown", "other/later", "samples=4", "--json", "--power", "5", cwd=whole)
    assert done.code == 0, done.stderr
    after = lines(whole / "grown/samples-sft.jsonl")
    assert [{**line, "samples": line["samples"][:2]} for line in after] == before
    assert {len(line["samples"]) for line in after} == {4}
    # The same weights answer alike, so nothing lies between the two: said in words.
    found = json.loads(done.stdout)
    assert found == summary(whole / "grown")
    assert all(pair["difference"] == 0 for pair in found["pairs"])
    assert "within noise" in done.stderr
    assert "questions for a difference of 5 points" in done.stderr
    metrics = found["runs"][0]["metrics"]
    rising = [metrics[f"pass@{k}/sampled"]["value"] for k in (1, 2, 4)]
    assert rising == sorted(rising)
    assert rising[0] == pytest.approx(metrics["accuracy/sampled"]["value"])
    assert rising[2] == sum(any(s["accuracy"] for s in line["samples"]) for line in after) / 24


def test_fewer_samples_or_a_run_less_is_another_evaluation(prism, trained, whole):
    done = prism("eval", trained, *SMALL, "samples=1", cwd=whole)
    assert done.code == 1
    assert "samples: 2 there, 1 now" in done.stderr


def test_power_of_a_finished_evaluation_generates_nothing(prism, whole):
    done = prism("eval", "runs/eval", "--power", "2", cwd=whole, kill=(SAMPLING, 1))
    assert done.code == 0, done.stderr
    assert "questions for a difference of 2 points" in done.stdout
    assert "as if the other erred independently" in " ".join(done.stdout.split())


def test_data_that_changed_underneath_is_refused_and_not_paired_with_the_old(prism, trained, whole):
    shutil.copytree(whole / "runs/eval", whole / "changed")
    path = whole / "changed/samples-sft.jsonl"
    path.write_text("".join(f"{json.dumps(line | {'id': 'gone'})}\n" for line in lines(path)))
    done = prism("eval", "changed", "samples=3", cwd=whole)
    assert done.code == 1
    assert "changed has answers to other rows than its data has now" in done.stderr


def test_a_difference_of_nothing_is_refused_before_anything_is_done(prism, trained, tmp_path):
    done = prism("eval", trained, *SMALL, "--power", "0", cwd=tmp_path)
    assert done.code == 2
    assert not (tmp_path / "runs").exists()


def test_answers_without_a_verdict_leave_every_metric_of_accuracy_and_are_counted(prism, trained, tmp_path):
    class Verdicts(dict):
        def __getitem__(self, question):
            given = question.split("===")[2]
            return [answer("YES" if "red" in given else "perhaps" if "blue" in given else "NO")]

    with FaultyEndpoint() as endpoint:
        endpoint.plan = Verdicts()
        judge = f"llm_judge={{endpoint: '{endpoint.url}', model: m, attempts: 1, store: kept.sqlite}}"
        done = prism("eval", trained, *SMALL, "data.size=64", "samples=2", judge, cwd=tmp_path)
    assert done.code == 0, done.stderr
    said = [s for line in lines(tmp_path / "runs/eval/samples-sft.jsonl") for s in (line["greedy"], *line["samples"])]
    unjudged = [s for s in said if "unjudged" in s]
    assert unjudged
    assert all("accuracy" not in s and "blue" in s["text"] for s in unjudged)
    (run,) = summary(tmp_path / "runs/eval")["runs"]
    assert run["failed"] == {"responses": len(unjudged), "generation": 0, "llm_judge": len(unjudged)}
    assert f"{len(unjudged)} failed, left out" in " ".join(done.stdout.split())
    right = [
        [s["accuracy"]]
        for line in lines(tmp_path / "runs/eval/samples-sft.jsonl")
        for s in [line["greedy"]]
        if "accuracy" in s
    ]
    assert run["metrics"]["accuracy/greedy"]["n"] == len(right)
