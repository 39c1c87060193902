"""`prism collect`: demonstrations and pairs, what they hold, and that every answer is paid for once."""

import hashlib
import io
import json
import os
import signal
import threading
import time
from collections import Counter

import openai
import pytest
from datasets import load_dataset
from PIL import Image

from prism_cli.assembly.response import grammar_of
from prism_cli.data.load import load_rows
from prism_cli.endpoint.store import AnswerStore
from prism_cli.recipes.sections import ResponseSection
from prism_cli.rewards.accuracy import is_correct
from prism_cli.teacher.chat_protocol import ApiError
from prism_cli.teacher.server import ServedEndpoint, create_app
from prism_cli.worlds import world

GRAMMAR = grammar_of(ResponseSection())
SMALL = ["collect", "tiny", "data.size=24"]


class Oracle:
    """The world's faultless reader as an endpoint; every question's second answer differs, some are malformed."""

    def __init__(self, delay=0.0):
        self.asked: Counter[str] = Counter()
        self.malformed: set[str] = set()
        # So many it answers well; so many at all, and hangs then or refuses the key.
        self.speaks = self.open = 10**6
        self.hangs, self.stop_hanging = False, threading.Event()
        self._counting = threading.Lock()
        self._server = ServedEndpoint(create_app(self._answer, "oracle", delay=delay))

    def __enter__(self):
        self._server.__enter__()
        self.flags = ["--teacher-endpoint", self._server.url, "--teacher-model", "oracle"]
        self.openai = openai.OpenAI(base_url=self._server.url, api_key="x")
        return self

    def __exit__(self, *exception):
        self.openai.close()
        self._server.__exit__(*exception)

    def _answer(self, request):
        question = f"{request.question} {hashlib.sha256(request.images[0]).hexdigest()[:8]}"
        with self._counting:
            self.asked[question] += 1
            time_asked, total = self.asked[question], sum(self.asked.values())
        if total > self.open:
            if not self.hangs:
                raise ApiError(401, "no")
            self.stop_hanging.wait(20)
        if question in self.malformed or total > self.speaks:
            return ["no"]
        blocks = world("shapes").oracle(request.question, Image.open(io.BytesIO(request.images[0])))
        if time_asked > 1:
            blocks["think"] = f"{blocks['think']} indeed"
        return [GRAMMAR.render(blocks)]


@pytest.fixture
def oracle():
    with Oracle() as one:
        yield one


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def demonstrations(folder):
    return load_dataset("parquet", data_files=str(folder / "data/demonstrations.parquet"), split="train").to_list()


def test_the_tiny_recipe_collects_what_is_right_and_sft_learns_it(prism, tmp_path):
    done = prism("collect", "tiny", "data.size=48", cwd=tmp_path)
    assert done.code == 0, done.stderr
    folder = tmp_path / "runs/collect"
    told, rows = summary(folder), demonstrations(folder)
    assert told["prompts"] == 48
    assert told["answers"] == 96
    assert told["kept"] == len(rows) > 0
    assert told["kept"] + sum(told["rejected"].values()) == 96
    # The oracle reasons badly on purpose and, asked twice, says the same.
    assert told["rejected"]["wrong"] > 0
    assert told["rejected"]["duplicate"] == told["kept"]
    for row in rows:
        response = GRAMMAR.parse(row["completion"][0]["content"])
        assert is_correct(response.answer, row["answers"], row["prompt"][-1]["content"])
        assert row["teacher_response"] == row["completion"][0]["content"]
        assert Image.open(io.BytesIO(row["images"][0]["bytes"])).size == (48, 48)
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert Counter(line["reason"].partition(":")[0] for line in lines) == told["rejected"]
    card = (folder / "data/README.md").read_text()
    assert f"| kept | {len(rows)} of 96 answers" in card
    assert "provider's terms" in card
    for data in ("data", "data/demonstrations.parquet"):
        options = ["--max-steps", "2", "eval_data=null", "checkpoint.evaluate_every=null", "batch_size=4"]
        done = prism(
            "sft", "tiny", "--data", folder / data, *options, "model.hidden=32", "--output", data, cwd=tmp_path
        )
        assert done.code == 0, done.stderr


def test_samples_of_one_prompt_are_rows_of_their_own(prism, oracle, tmp_path):
    done = prism(*SMALL, *oracle.flags, "samples=2", cwd=tmp_path)
    assert done.code == 0, done.stderr
    rows = demonstrations(tmp_path / "runs/collect")
    assert len(rows) == 48
    assert [row["id"] for row in rows[:2]] == ["shapes-train-2-0", "shapes-train-2-0#1"]
    assert rows[0]["completion"] != rows[1]["completion"]
    assert rows[0]["images"] == rows[1]["images"]


def test_a_killed_collection_asks_nothing_twice_and_a_fresh_one_nothing_at_all(prism, oracle, tmp_path):
    order = [*SMALL, *oracle.flags, "samples=1"]
    killed = prism(*order, cwd=tmp_path, kill=("prism_cli.endpoint.store:AnswerStore.put", 20))
    assert killed.code == -signal.SIGKILL
    store = AnswerStore(tmp_path / "runs/teacher_answers.sqlite")
    kept = {answer.key for answer in store}
    done = prism(*order, cwd=tmp_path)
    assert done.code == 0, done.stderr
    answers = list(store)
    store.close()
    assert 10 < len(kept) < 20
    assert len(answers) == len({answer.key for answer in answers}), "each question has one answer"
    asked = sum(oracle.asked.values())
    # What was under way at the kill was lost; nothing that was kept was asked for again.
    assert len(answers) <= asked <= len(answers) + 64
    first = demonstrations(tmp_path / "runs/collect")
    again = prism(*order, "--fresh", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert sum(oracle.asked.values()) == asked
    assert demonstrations(tmp_path / "runs/collect") == first


def test_a_cap_keeps_what_was_answered_and_a_larger_one_goes_on(prism, oracle, tmp_path):
    order = [*SMALL, *oracle.flags, "samples=1", "teacher.check=false"]
    capped = prism(*order, "--max-teacher-calls", "20", cwd=tmp_path)
    assert capped.code == 3, capped.stderr
    assert "20 calls" in capped.stderr
    folder = tmp_path / "runs/collect"
    some = demonstrations(folder)
    assert len(some) == 20, "what was paid for is not held back"
    assert "the 20 kept so far" in capped.stderr
    assert not summary(folder)["complete"]
    assert "Incomplete" in (folder / "data/README.md").read_text()
    done = prism(*order, "--max-teacher-calls", "40", cwd=tmp_path)
    assert done.code == 0, done.stderr
    rows = demonstrations(folder)
    assert len(rows) == 24
    assert all(row in rows for row in some)
    assert sum(oracle.asked.values()) == 24


def test_an_answer_that_stays_malformed_is_rejected_with_its_reason(prism, oracle, tmp_path):
    assert prism(*SMALL, *oracle.flags, "samples=1", "teacher.check=false", "data.size=1", cwd=tmp_path).code == 0
    oracle.malformed = set(oracle.asked)
    order = [*SMALL, *oracle.flags, "samples=1", "teacher.check=false", "--fresh"]
    done = prism(*order, "teacher.store=other.sqlite", cwd=tmp_path)
    assert done.code == 0, done.stderr
    (line,) = (tmp_path / "runs/collect/rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {"row": "shapes-train-2-0", "sample": 0, "reason": "malformed"}
    assert summary(tmp_path / "runs/collect")["kept"] == 23


def test_what_the_teacher_fails_on_is_rejected_and_only_a_teacher_without_one_answer_is_an_error(
    prism, oracle, tmp_path
):
    order = [*SMALL, *oracle.flags, "samples=1", "teacher.check=false", "teacher.attempts=1", "--fresh"]
    oracle.speaks = 12
    done = prism(*order, "teacher.concurrency=1", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "the teacher failed on 12 of 24 questions (50.0%)" in done.stdout
    told = summary(tmp_path / "runs/collect")
    assert (told["kept"], told["failed"], told["complete"]) == (12, 12, True)
    oracle.speaks = 0
    mute = prism(*order, "teacher.store=other.sqlite", cwd=tmp_path)
    assert mute.code == 1
    assert "no usable answer to any of 24 questions (24 malformed)" in mute.stderr
    assert summary(tmp_path / "runs/collect")["failed"] == 24
    oracle.asked.clear()
    rows = ["data.size=400", "teacher.store=third.sqlite"]
    mute = prism("collect", "tiny", *order[2:], *rows, cwd=tmp_path)
    assert "no usable answer to any of 112 questions" in mute.stderr, "100, up to the end of its lot"
    assert sum(oracle.asked.values()) < 400, "nobody pays on and on for nothing"


@pytest.mark.parametrize("end", ["refused", "interrupted"])
def test_a_collection_that_breaks_off_keeps_what_it_has(prism, tmp_path, end):
    with Oracle() as oracle:
        oracle.open = 40
        oracle.hangs = end == "interrupted"
        order = ["collect", "tiny", "data.size=64", *oracle.flags, "samples=1", "teacher.check=false"]
        command = prism.start(*order, "teacher.concurrency=2", cwd=tmp_path)
        if end == "interrupted":
            while sum(oracle.asked.values()) < 41:
                assert command.running(), command.wait()
                time.sleep(0.02)
            time.sleep(0.5)
            os.kill(command.pid, signal.SIGINT)
        done = command.wait()
        oracle.stop_hanging.set()
        folder = tmp_path / "runs/collect"
        assert done.code == (130 if end == "interrupted" else 1), done
        some = demonstrations(folder)
        assert 30 < len(some) <= 40
        assert f"the {len(some)} kept so far" in " ".join((done.stdout + done.stderr).split())
        assert not summary(folder)["complete"]
        assert "Incomplete" in (folder / "data/README.md").read_text()
        oracle.open, oracle.hangs = 10**6, False
        done = prism(*order, cwd=tmp_path)
        assert done.code == 0, done.stderr
        assert len(demonstrations(folder)) == 64


def test_batches_bring_the_same_rows_and_a_command_killed_while_waiting_pays_once(prism, oracle, tmp_path):
    order = [*SMALL, *oracle.flags, "samples=1", "teacher.check=false"]
    assert prism(*order, "--output", "direct", "teacher.store=direct.sqlite", cwd=tmp_path).code == 0
    assert sum(oracle.asked.values()) == 24
    oracle.asked.clear()
    killed = prism(*order, "batch=true", cwd=tmp_path, kill=("prism_cli.endpoint.batches.client:BatchAsker._look", 1))
    assert killed.code == -signal.SIGKILL
    done = prism(*order, "batch=true", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert set(oracle.asked.values()) == {1}
    assert [batch.request_counts.completed for batch in oracle.openai.batches.list()] == [24]
    assert demonstrations(tmp_path / "runs/collect") == demonstrations(tmp_path / "direct")
    assert summary(tmp_path / "runs/collect")["usage"]["calls"] == 24


def test_an_open_batch_is_collected_first_by_direct_questions_and_kept_from_fresh(prism, oracle, tmp_path):
    order = [*SMALL, *oracle.flags, "samples=1", "teacher.check=false"]
    look = ("prism_cli.endpoint.batches.client:BatchAsker._look", 1)
    assert prism(*order, "batch=true", cwd=tmp_path, kill=look).code == -signal.SIGKILL
    (batch,) = oracle.openai.batches.list()
    for way in ("batch=true", "batch=false"):
        fresh = prism(*order, way, "--fresh", cwd=tmp_path)
        assert fresh.code == 1
        assert batch.id in fresh.stderr
        assert "without --fresh" in " ".join(fresh.stderr.split())
    done = prism(*order, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert set(oracle.asked.values()) == {1}
    assert len(demonstrations(tmp_path / "runs/collect")) == 24
    assert summary(tmp_path / "runs/collect")["usage"]["calls"] == 24
    assert prism(*order, "--fresh", cwd=tmp_path).code == 0


def test_probes_before_batches_are_capped_and_cost_what_direct_calls_cost(prism, oracle, tmp_path):
    price = ["teacher.price={prompt: 1000.0, completion: 1000.0}", "teacher.max_tokens=64"]
    order = [*SMALL, *oracle.flags, *price, "samples=1", "batch=true"]
    capped = prism(*order, "--max-teacher-calls", "10", cwd=tmp_path)
    assert capped.code == 3, capped.stderr
    assert sum(oracle.asked.values()) == 10
    store = AnswerStore(tmp_path / "runs/teacher_answers.sqlite")
    probes = [answer for answer in store if answer.row.startswith("probe")]
    asked = [answer for answer in store if not answer.row.startswith("probe")]
    store.close()
    assert (len(probes), len(asked)) == (6, 4)
    for answers, dollars in ((probes, 1e-3), (asked, 0.5e-3)):
        for answer in answers:
            assert answer.usd == pytest.approx((answer.prompt_tokens + answer.completion_tokens) * dollars)
    usage = summary(tmp_path / "runs/collect")["usage"]
    assert (usage["calls"], usage["usd"]) == (10, pytest.approx(sum(answer.usd for answer in [*probes, *asked])))


def test_ctrl_c_leaves_the_batch_running_and_says_so(prism, tmp_path):
    with Oracle(delay=1.0) as oracle:
        order = [*SMALL, *oracle.flags, "samples=1", "teacher.check=false", "batch=true"]
        command = prism.start(*order, cwd=tmp_path)
        while not (under_way := list(oracle.openai.batches.list())):
            assert command.running(), command.wait()
            time.sleep(0.02)
        time.sleep(0.3)  # the id is written down, the answers take longer
        os.kill(command.pid, signal.SIGINT)
        done = command.wait()
        assert done.code == 130, done
        assert f"{under_way[0].id}: under way at the endpoint" in done.stdout
        done = prism(*order, cwd=tmp_path)
        assert done.code == 0, done.stderr
        assert len(list(oracle.openai.batches.list())) == 1
        assert len(demonstrations(tmp_path / "runs/collect")) == 24


def test_batches_cost_half_and_a_cap_in_dollars_holds(prism, oracle, tmp_path):
    price = ["teacher.price={prompt: 1.0, completion: 10.0}", "teacher.max_tokens=64"]
    order = [*SMALL, *oracle.flags, *price, "samples=1", "teacher.check=false", "batch=true"]
    # Half of $10 a million for at most 64 tokens is $0.00032 a question, so $0.001 affords no more than three at once.
    capped = prism(*order, "--max-teacher-usd", "0.001", cwd=tmp_path)
    assert capped.code == 3, capped.stderr
    spent = summary(tmp_path / "runs/collect")["usage"]
    assert spent["usd"] <= 0.001
    assert spent["usd"] == pytest.approx(
        (spent["prompt_tokens"] * 0.5 + spent["completion_tokens"] * 5) / 1e6, abs=1e-6
    )
    assert max(batch.request_counts.total for batch in oracle.openai.batches.list()) <= 3
    assert len(demonstrations(tmp_path / "runs/collect")) == spent["calls"] > 1


def test_what_can_not_be_collected_is_refused_before_anything_is_asked(prism, oracle, tmp_path):
    blind = prism(*SMALL, *oracle.flags, "teacher.modality=text", cwd=tmp_path)
    assert (blind.code, "text-only teacher can't write" in blind.stderr) == (2, True)
    batch = prism(*SMALL, "batch=true", cwd=tmp_path)
    assert (batch.code, "embedded teacher answers at once" in batch.stderr) == (2, True)
    nobody = prism("collect", "--data", "x.jsonl", cwd=tmp_path)
    assert nobody.code == 1
    assert "no file x.jsonl" in nobody.stderr
    dry = prism(*SMALL, *oracle.flags, "--dry-run", cwd=tmp_path)
    assert dry.code == 0, dry.stderr
    assert "48, with 48 pictures" in dry.stderr
    preview = prism(*SMALL, *oracle.flags, "--teacher-preview", "2", cwd=tmp_path)
    assert preview.stdout.count("<image 48×48 PNG") == 2
    assert not oracle.asked
    assert not list(tmp_path.iterdir())


def test_pairs_stand_beside_the_policys_own_answers_in_the_published_shape(prism, trained, tmp_path):
    done = prism("collect", "tiny", "data.size=16", "--from", trained, cwd=tmp_path)
    assert done.code == 0, done.stderr
    folder = tmp_path / "runs/collect"
    told = summary(folder)
    lines = [json.loads(line) for line in (folder / "data/pairs.jsonl").read_text().splitlines()]
    assert told["kind"] == "pairs"
    assert len(lines) == told["kept"] > 16, "a policy that can speak gives mostly well-formed pairs"
    assert told["kept"] + sum(told["rejected"].values()) == 32
    assert set(told["rejected"]) <= {"policy malformed"}
    for line in lines:
        assert line["teacher_caption"].startswith("<caption>")
        assert line["student_cot"].startswith("<think>")
        assert line["student_cot"].endswith("</answer>")
        with Image.open(folder / "data" / line["image"]) as picture:
            assert picture.size == (48, 48)
    rows = load_rows(str(folder / "data/pairs.jsonl")).rows
    assert all(GRAMMAR.parse(row["teacher_response"]).well_formed for row in rows)
    assert all(GRAMMAR.parse(row["student_response"]).well_formed for row in rows)
    assert len(set(rows["student_response"])) > 8
    samples = (folder / "samples.jsonl").read_text()
    again = prism("collect", "tiny", "data.size=16", "--from", trained, "--output", "again", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert (tmp_path / "again/samples.jsonl").read_text() == samples
