"""`prism eval --benchmarks`: lmms-eval in its own process, its task scored from the policy's answer blocks."""

import json
import shutil

import pytest

from tests.faulty_endpoint import FaultyEndpoint, answer, status
from tests.lmms.tasks import write_tasks

QUESTIONS = 8
SECRET = "sk-of-nobody"
WORDS = ["benchmarks.include=tasks", "benchmarks.batch_size=4", "benchmarks.max_response_tokens=64"]


class Verdicts(dict):
    """The plan of a judge that is down for one answer, and says yes to all others."""

    def __getitem__(self, question):
        return [status(500) if question == "nothing" else answer("yes")]


@pytest.fixture(scope="module")
def measured(prism, trained, tmp_path_factory):
    """A folder with an evaluation on one task; stopped, as it were, and continued with a second that has a judge."""
    folder = tmp_path_factory.mktemp("benchmarks")
    folder.joinpath("answers").write_text(json.dumps(write_tasks(folder / "tasks", QUESTIONS)))
    first = prism("eval", trained, "--benchmarks", "shapes_by_rule", *WORDS, "--output", "run", cwd=folder)
    assert first.code == 0, first.stderr
    shutil.copy(folder / "run/benchmarks/sft/shapes_by_rule.json", folder / "before.json")
    shutil.copy(folder / "run/benchmarks/sft/shapes_by_rule.jsonl", folder / "before.jsonl")
    (folder / "shown").write_text(first.stdout)
    (folder / "run/benchmarks/sft/shapes_by_rule.json").unlink()
    kept = folder / "run/benchmarks/sft/responses-shapes_by_rule.jsonl"
    kept.write_text(kept.read_text().replace("<answer>", "<answer> not"))  # asked anew, it would be right again
    with FaultyEndpoint() as endpoint:
        endpoint.plan = Verdicts()
        judge = f"benchmarks.llm_judge={{endpoint: '{endpoint.url}', model: m, api_key_env: JUDGE_KEY}}"
        more = [*WORDS, judge, "--benchmarks", "shapes_by_rule,shapes_by_judge"]
        done = prism("eval", trained, *more, "--output", "run", cwd=folder, env={"JUDGE_KEY": SECRET})
        assert done.code == 0, done.stderr
        assert set(endpoint.keys) == {f"Bearer {SECRET}"}
    return folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def score_of(folder, task):
    (score,) = [
        one for one in json.loads((folder / "run/summary.json").read_text())["benchmarks"] if one["task"] == task
    ]
    return score


def test_a_tasks_score_is_of_the_answer_blocks(measured):
    truths = json.loads((measured / "answers").read_text())
    lines = lines_of(measured / "before.jsonl")
    right = [line["answer"] == truth for line, truth in zip(lines, truths, strict=True)]
    assert [line["scores"]["right"] for line in lines] == list(map(float, right))
    (score,) = json.loads((measured / "before.json").read_text())["scores"]
    assert (score["value"], score["questions"], score["failed"]) == (sum(right) / QUESTIONS, QUESTIONS, 0)
    assert score["low"] < score["value"] <= score["high"]
    assert sum(right) >= QUESTIONS / 2
    assert "shapes_by_rule" in (measured / "shown").read_text()


def test_a_question_without_a_verdict_is_counted_and_not_wrong(measured):
    lines = lines_of(measured / "run/benchmarks/sft/shapes_by_judge.jsonl")
    failed = [line for line in lines if line["failed"]]
    assert {line["answer"] for line in failed} == {"nothing"}
    score = score_of(measured, "shapes_by_judge")
    assert (score["run"], score["metric"]) == ("sft", "right")
    # Every verdict there is says yes.
    assert (score["value"], score["questions"], score["failed"]) == (1.0, QUESTIONS - len(failed), len(failed))


def test_the_judges_key_is_nowhere_on_disk(measured):
    assert not [path for path in measured.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_stopped_benchmark_keeps_the_responses_it_has(measured):
    score = score_of(measured, "shapes_by_rule")
    assert (score["value"], score["questions"]) == (0.0, QUESTIONS)


def test_data_that_is_not_there_is_told_with_what_to_do(prism, trained, measured):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(measured / "empty")}
    done = prism("eval", trained, "--benchmarks", "mmmu", "--output", "absent", cwd=measured, env=offline)
    assert done.code == 1
    assert "Couldn't reach" in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr
    assert "Traceback" not in done.stderr
