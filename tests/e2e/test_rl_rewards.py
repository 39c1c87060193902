"""`prism rl` with rewards a user composes: a judge over a real socket, which is capped, and a function of their own."""

import json
import re

import pytest

from tests.faulty_endpoint import FaultyEndpoint, answer

OWN = """
def short(response, row, length):
    return None if response.answer is None else -length / 64
"""


class Verdicts(dict):
    """The plan of an endpoint that says YES of what is red and NO else, but says nothing clear of what is blue."""

    def __getitem__(self, question):
        given = question.split("===")[2]
        return [answer("YES" if "red" in given else "perhaps" if "blue" in given else "NO")]


@pytest.fixture
def endpoint():
    with FaultyEndpoint() as endpoint:
        endpoint.plan = Verdicts()
        yield endpoint


def metrics(folder):
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def test_a_capped_judge_stops_training_and_the_same_command_goes_on(prism, trained, tmp_path, endpoint):
    (tmp_path / "mine.py").write_text(OWN)
    judge = f"{{endpoint: '{endpoint.url}', model: m, attempts: 1}}"
    words = [
        *("rl", "tiny", "--from", trained, "data.size=32", "eval_data=null", "checkpoint.evaluate_every=null"),
        *("prompts_per_step=8", "rollouts=4", "micro_batch=16", "temperature=1.5", "max_response_tokens=48"),
        *("rewards.repetition=0.1", "rewards.custom={short: {function: mine.short, weight: 0.05}}"),
        f"rewards.llm_judge={judge}",
    ]
    first = prism(*words, "--output", "first", "max_steps=1", "rewards.llm_judge.store=first.sqlite", cwd=tmp_path)
    assert first.code == 0, first.stderr
    # What the first step takes, and one more.
    cap = json.loads((tmp_path / "first/llm_judge.json").read_text())["calls"] + 1
    endpoint.asked.clear()
    words += ["--output", "run", "max_steps=4", "rewards.llm_judge.store=kept.sqlite"]
    done = prism(*words, f"rewards.llm_judge.max_calls={cap}", cwd=tmp_path)
    assert done.code == 3, done.stderr
    assert f"rewards.llm_judge: the budget of {cap} calls is used up" in done.stderr
    assert "raise rewards.llm_judge.max_calls" in done.stderr
    assert re.search(r"training is kept up to step [1-3]", done.stderr)
    assert endpoint.asked.total() == cap
    stopped = metrics(tmp_path)
    done = prism(*words, cwd=tmp_path)
    assert done.code == 0, done.stderr
    whole = metrics(tmp_path)
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    assert stopped == whole[: len(stopped)]
    assert max(endpoint.asked.values()) == 1
    assert json.loads((tmp_path / "run/llm_judge.json").read_text())["calls"] == endpoint.asked.total() > cap
    # What the judge left open is unscored, and not wrong.
    assert any(line["rewards/unscored_fraction"] > 0 for line in whole)
    assert all(-1 < line["rewards/short/mean"] < 0 and "rewards/repetition/mean" in line for line in whole)
    audited = prism(*words, "--audit", "--json", cwd=tmp_path)
    assert audited.code == 0, audited.stderr
    assert json.loads(audited.stdout)["llm_judge"] == "not asked"


FAILING = """
from pathlib import Path

def broken(response, row, length):
    if Path("run/metrics.jsonl").exists():
        raise ValueError("no good")
    return 0.0
"""


def test_a_reward_that_fails_names_itself_and_keeps_the_last_step(prism, trained, tmp_path):
    (tmp_path / "mine.py").write_text(FAILING)
    words = [
        *("rl", "tiny", "--from", trained, "data.size=16", "eval_data=null", "checkpoint.evaluate_every=null"),
        *("prompts_per_step=2", "rollouts=4", "micro_batch=8", "max_response_tokens=24", "max_steps=3"),
        *("rewards.custom={broken: {function: mine.broken}}", "--output", "run"),
    ]
    done = prism(*words, cwd=tmp_path)
    assert done.code == 1
    assert "mine.broken" in done.stderr
    assert "no good" in done.stderr
    assert "training is kept up to step 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run/checkpoints/checkpoint-1/complete.json").is_file()
