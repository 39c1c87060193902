"""Teachers as a user meets them: checked, previewed, capped, blind, text-only, failing now and then, and logged."""

import io
import json
import socket
from collections import Counter

import pytest
from PIL import Image

from prism_cli.assembly.endpoint import world_app
from prism_cli.assembly.response import grammar_of
from prism_cli.recipes.sections import ResponseSection
from prism_cli.teacher.server import ServedEndpoint, create_app
from prism_cli.worlds import world

GRAMMAR = grammar_of(ResponseSection())
FEW = ["max_steps=2", "data.size=24", "eval_data=null", "checkpoint.evaluate_every=null"]
SFT = ["sft", "tiny", *FEW, "batch_size=8", "model.hidden=64"]
ROLLOUTS = ["prompts_per_step=2", "rollouts=4", "micro_batch=8", "max_response_tokens=56"]
WARM_UP = "discriminator.warmup={pairs: 16, held_out: 4, batch_size: 8, learning_rate: 1e-3}"
ALIGN = ["align", "tiny", *FEW, *ROLLOUTS, WARM_UP]


class Oracle:
    """The world's oracle over HTTP; writes nonsense about every `nonsense`-th picture it meets, and counts."""

    def __init__(self, nonsense=0):
        self.met: dict[bytes, int] = {}
        self.asked: Counter[bytes] = Counter()
        place = world("shapes")

        def answer(request):
            (image,) = request.images
            number = self.met.setdefault(image, len(self.met) + 1)
            self.asked[image] += 1
            if nonsense and number % nonsense == 0:
                return ["I would rather not say."]
            return [GRAMMAR.render(place.oracle(request.question, Image.open(io.BytesIO(image))))]

        self._served = ServedEndpoint(create_app(answer, "oracle"))

    def __enter__(self):
        self.url = self._served.__enter__().url
        self.flags = ["--teacher-endpoint", self.url, "--teacher-model", "oracle"]
        return self

    def __exit__(self, *exception):
        self._served.__exit__(*exception)


@pytest.fixture
def nobody():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


def manifest(folder):
    return json.loads((folder / "run.json").read_text())


# Check and log -------------------------------------------------------------------------------------------------------


def test_check_tells_who_sees_and_who_does_not_by_its_exit_code(prism, tmp_path, nobody):
    seeing = prism("teacher", "check", "tiny", "teacher.variant=weak_perception", cwd=tmp_path)
    assert (seeing.code, "yes: 3 of 3 pairs" in seeing.stdout) == (0, True), seeing
    blind = prism("teacher", "check", "tiny", "teacher.variant=text_only", "--json", cwd=tmp_path)
    assert blind.code == 1
    found = json.loads(blind.stdout)
    assert (found["passed"], found["seen"], found["asked"], found["well_formed"]) == (False, 0, 6, 6)
    dead = prism("teacher", "check", "--teacher-endpoint", nobody, "--teacher-model", "m", cwd=tmp_path)
    assert (dead.code, "can't be reached" in dead.stderr) == (1, True)


def test_log_shows_what_was_asked_and_exports_what_prism_reads(prism, tmp_path):
    assert prism("teacher", "log", cwd=tmp_path).code == 1
    with Oracle(nonsense=5) as oracle:
        done = prism(*SFT, *oracle.flags, "teacher.max_failed=0.5", "teacher.attempts=1", cwd=tmp_path)
    assert done.code == 0, done.stderr
    shown = prism("teacher", "log", "-n", "3", cwd=tmp_path)
    assert (shown.code, "the last 3 calls" in shown.stdout) == (0, True), shown
    (totals,) = json.loads(prism("teacher", "log", "--json", cwd=tmp_path).stdout)["totals"]
    assert (totals["teacher"], totals["calls"]) == ("oracle", sum(oracle.asked.values()))
    assert prism("teacher", "log", "--export", "out.jsonl", cwd=tmp_path).code == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == totals["calls"]
    rows = [word for word in SFT if not word.startswith("data.")]
    again = prism(*rows, "data={path: out.jsonl}", "--output", "again", "max_tokens=256", cwd=tmp_path)
    assert "out.jsonl: 30 rows, conversational" in again.stderr
    assert again.code == 0, again.stderr


# Preview and plan ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sft", "align", "eval"])
def test_a_preview_prints_the_requests_and_sends_and_writes_nothing(command, prism, trained, tmp_path, nobody):
    start = (
        [trained, "tiny"] if command == "eval" else ["tiny", "--from", trained, *(["model=null"] * (command == "sft"))]
    )
    more = ["response=null", "image=null"] if command == "sft" else []
    flags = ["--teacher-endpoint", nobody, "--teacher-model", "m", "--teacher-preview", "2"]
    done = prism(command, *start, *more, *flags, cwd=tmp_path, env={"OPENAI_API_KEY": "sk-secret"})
    assert done.code == 0, done.stderr
    assert done.stdout.count(f"POST {nobody}/chat/completions") == 2
    assert done.stdout.count("<image 48×48 PNG") == 2
    assert "sk-secret" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_told_before_asking_and_in_a_dry_run(prism, tmp_path):
    with Oracle() as oracle:
        price = "teacher.price={prompt: 1, completion: 10}"
        plan = prism(*SFT, *oracle.flags, price, "--dry-run", cwd=tmp_path)
        assert "24, with 24 pictures; 0 answers are kept" in plan.stderr
        # 24 answers of 8192 tokens at $10 a million are $1.97; reading adds less than a cent.
        assert "at most about $1.97" in plan.stderr
        assert (oracle.asked, list(tmp_path.iterdir())) == (Counter(), [])
        done = prism(*SFT, *oracle.flags, price, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "24, with 24 pictures; 0 answers are kept" in done.stdout
    assert "teacher: 24 answers, 0 from the store, $" in done.stdout
    assert "none: all 24 answers are kept" in prism(*SFT, *oracle.flags, price, "--dry-run", cwd=tmp_path).stderr


# Caps ----------------------------------------------------------------------------------------------------------------


def test_a_cap_stops_with_its_own_code_and_a_larger_one_continues(prism, tmp_path):
    with Oracle() as oracle:
        # Six of the calls are probes.
        capped = prism(*SFT, *oracle.flags, "--max-teacher-calls", "16", cwd=tmp_path)
        assert (capped.code, "max_calls" in capped.stderr) == (3, True), capped
        assert sum(oracle.asked.values()) == 16
        done = prism(*SFT, *oracle.flags, "--max-teacher-calls", "30", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert set(oracle.asked.values()) == {1}
    assert json.loads((tmp_path / "runs/sft/teacher.json").read_text())["calls"] == 30


def test_caps_need_a_price_and_a_teacher_that_takes_them(prism, tmp_path):
    no_price = prism(*SFT, "--teacher-endpoint", "http://127.0.0.1:9/v1", "--max-teacher-usd", "1", cwd=tmp_path)
    assert (no_price.code, "max_usd needs a price" in no_price.stderr) == (2, True)
    embedded = prism("align", "tiny", "--max-teacher-calls", "5", "--dry-run", cwd=tmp_path)
    assert (embedded.code, "type embedded has no such key" in embedded.stderr) == (2, True)


# Failures ------------------------------------------------------------------------------------------------------------


def test_rows_the_teacher_fails_on_are_left_out_and_told(prism, tmp_path):
    with Oracle(nonsense=8) as oracle:
        failing = ["teacher.attempts=2", "teacher.check=false"]
        stopped = prism(*SFT, *oracle.flags, *failing, cwd=tmp_path)
        assert stopped.code == 1
        assert "failed on 3 of 24 rows (3 malformed)" in stopped.stderr
        done = prism(*SFT, *oracle.flags, *failing, "teacher.max_failed=0.2", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "21 answers, 21 from the store, 3 rows failed (3 malformed)" in done.stdout
    assert Counter(oracle.asked.values()) == {1: 21, 2: 3}, "failures are kept too: they were paid for"


def test_an_evaluation_goes_on_without_the_answers_it_could_not_get(prism, trained, tmp_path):
    with Oracle(nonsense=4) as oracle:
        flags = [*oracle.flags, "teacher.attempts=1", "teacher.check=false", "teacher.max_failed=0.5"]
        done = prism("eval", trained, "tiny", "data.size=8", "samples=0", *flags, cwd=tmp_path)
    assert done.code == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/eval/samples-sft.jsonl").read_text().splitlines()]
    assert sum("teacher_logprob" in line for line in lines) == 6
    assert sum("caption_distance" in line["greedy"] for line in lines) == 6
    (found,) = json.loads((tmp_path / "runs/eval/summary.json").read_text())["runs"]
    assert found["metrics"]["teacher_logprob"]["n"] == 6


# Eyes ----------------------------------------------------------------------------------------------------------------


def test_a_blind_teacher_is_refused_before_anything_is_trained(prism, trained, tmp_path):
    with ServedEndpoint(world_app("shapes", "text_only", GRAMMAR)) as served:
        done = prism(*ALIGN, "--from", trained, "--teacher-endpoint", served.url, cwd=tmp_path)
    assert done.code == 1
    assert "does not see the pictures" in done.stderr
    assert "teacher.modality=text" in done.stderr
    assert not (tmp_path / "runs/align/warmup").exists()


def test_a_text_only_teacher_teaches_reasoning_and_leaves_perception_alone(prism, trained, tmp_path):
    text = ["teacher.variant=text_only", "teacher.modality=text"]
    done = prism(*ALIGN, "--from", trained, *text, cwd=tmp_path)
    assert done.code == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/align/metrics.jsonl").read_text().splitlines()]
    scored = {name for line in lines for name in line if name.startswith("discriminator/accuracy/")}
    assert scored == {"discriminator/accuracy/reasoning"}
    saved = json.loads((tmp_path / "runs/align/discriminator/discriminator.json").read_text())
    assert saved["parts"] == ["reasoning"]
    first = json.loads((tmp_path / "runs/align/showcase.jsonl").read_text().splitlines()[0])
    assert first["teacher"].startswith("<think>")
    assert set(first["before"]["scores"]) == {"reasoning"}
    # Another run's discriminator of both parts is no discriminator for this teacher.
    other = prism(*ALIGN, "--from", trained, *text, "--output", "two", "discriminator.path=runs/align/discriminator",
                  "teacher.modality=image", "teacher.variant=exact", cwd=tmp_path)  # fmt: skip
    assert (other.code, "scores reasoning, the teacher teaches perception" in other.stderr) == (2, True), other


@pytest.mark.parametrize("command", [[*SFT, "teacher={type: embedded, modality: text}"],
                                     ["eval", "TRAINED", "tiny", "teacher.modality=text"]])  # fmt: skip
def test_who_needs_whole_responses_refuses_a_text_only_teacher(command, prism, trained, tmp_path):
    done = prism(*(trained if word == "TRAINED" else word for word in command), cwd=tmp_path)
    assert (done.code, "needs whole responses" in done.stderr) == (2, True), done
