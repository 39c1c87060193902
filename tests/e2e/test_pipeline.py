"""The whole road on two small handfuls of steps: what is tested is that it holds together, not that it learns."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from prism_cli.endpoint.store import AnswerStore
from prism_cli.evaluation.sampling import encode_prompts
from prism_cli.models import load_policy, multimodal
from prism_cli.runs.references import COMPLETE
from prism_cli.worlds import world

SMALL = [
    *("sft.max_steps=4", "sft.data.size=64", "sft.eval_data.size=16", "sft.batch_size=8"),
    *(
        "sft.optimizer.learning_rate=1e-6",
        "sft.checkpoint.every=2",
        "sft.checkpoint.evaluate_every=2",
        "sft.log_every=1",
    ),
    *("align.max_steps=2", "align.data.size=16", "align.eval_data.size=4", "align.prompts_per_step=2"),
    *("align.rollouts=4", "align.micro_batch=8", "align.max_response_tokens=48", "align.checkpoint.every=1"),
    *("align.discriminator.warmup.pairs=16", "align.discriminator.warmup.held_out=4"),
    *("rl.max_steps=2", "rl.data.size=16", "rl.eval_data.size=4", "rl.prompts_per_step=2", "rl.rollouts=4"),
    *("rl.micro_batch=8", "rl.max_response_tokens=24", "rl.checkpoint.every=2", "rl.checkpoint.evaluate_every=2"),
    *("eval.data.size=16", "eval.samples=1", "eval.max_response_tokens=24"),
]


@pytest.fixture(scope="module")
def small(trained):
    """Overrides that make a run of seconds; it starts from a policy that can speak, else there is nothing to score."""
    return [*SMALL, "sft.model.type=pretrained", f"sft.model.path={trained / 'model'}"]


@pytest.fixture(scope="module")
def folder(prism, small, tmp_path_factory):
    """Where `prism run tiny` was run, and finished."""
    folder = tmp_path_factory.mktemp("pipeline")
    done = prism("run", "tiny", *small, cwd=folder)
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder


def test_every_step_left_what_it_should(folder):
    step_files = {"run.json", "recipe.yaml", "metrics.jsonl", "model", "checkpoints", ".lock"}
    samples = {f"samples-{step}.jsonl" for step in ("sft", "align", "rl")}
    expected = {
        "sft": step_files,
        "align": step_files | {"warmup", "discriminator", "showcase.jsonl", "teacher.json", "rollouts.jsonl"},
        "rl": step_files | {"rollouts.jsonl"},
        "eval": {"run.json", "recipe.yaml", "summary.json", "questions.jsonl", "teacher.json", ".lock"} | samples,
    }
    for step, files in expected.items():
        assert {path.name for path in (folder / "runs/tiny" / step).iterdir()} == files
        assert json.loads((folder / "runs/tiny" / step / "run.json").read_text())["status"] == "finished"
    assert not list(folder.rglob(".*.json.*")), "a temporary file was left"


def test_lineage_leads_from_step_to_step(folder):
    sources = {
        step: json.loads((folder / f"runs/tiny/{step}/run.json").read_text())["from"] for step in ("sft", "align", "rl")
    }
    assert sources["sft"] is None
    assert [sources[step]["run"] for step in ("align", "rl")] == ["runs/tiny/sft", "runs/tiny/align"]


def test_metrics_have_each_step_once(folder):
    for step, count in (("sft", 4), ("align", 2), ("rl", 2)):
        lines = [json.loads(line) for line in (folder / f"runs/tiny/{step}/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, count + 1))


def test_the_report_is_one_page_that_loads_nothing(folder):
    page = (folder / "runs/tiny/report.html").read_text()
    loads = re.findall(r"""(?:\bsrc|<link[^>]*\bhref)\s*=\s*["']?(https?:|//)|url\(["']?(https?:|//)|@import""", page)
    assert loads == []
    table = page.split('<section id="done">')[1].split("</section>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', table) == ["sft", "align", "rl", "eval"]
    assert table.count('"status finished"') == 4


def test_the_final_model_is_an_ordinary_one(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder / "runs/tiny/rl/model")
    processor = AutoProcessor.from_pretrained(folder / "runs/tiny/rl/model")
    (example,) = world("shapes").examples("test", 1, 0)
    asked = encode_prompts(processor, [multimodal([{"role": "user", "content": example.question}], [example.image])])
    with torch.no_grad():
        answer = model.generate(**asked, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > asked["input_ids"].shape[1]


def test_the_model_card_tells_where_it_came_from(folder):
    card = (folder / "runs/tiny/rl/model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert re.findall(r"^\| [1-9] \| `prism (\w+)`", card, re.M) == ["sft", "align", "rl"]


def test_a_checkpoint_holds_all_it_takes_to_continue_or_start_from(folder):
    checkpoint = folder / "runs/tiny/align/checkpoints/checkpoint-2"
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    ours = {COMPLETE, "response.json", "discriminator/optimizer.pt", "discriminator/model.safetensors"}
    trainers = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert ours | trainers <= names
    assert load_policy(checkpoint).grammar.tags == ("caption", "think", "answer")


def test_a_step_can_start_from_a_checkpoint(prism, folder, tmp_path):
    plan = prism("rl", "tiny", "--from", "runs/tiny/align@1", "--dry-run", cwd=folder)
    assert plan.code == 0, plan.stderr
    assert "checkpoint-1" in plan.stderr


def test_every_teacher_answer_was_paid_for_once(folder):
    store = AnswerStore(folder / "runs/tiny/teacher_answers.sqlite")
    kept = {answer.key for answer in store}
    calls = [json.loads((folder / f"runs/tiny/{step}/teacher.json").read_text())["calls"] for step in ("align", "eval")]
    # align: 6 probes, 16 + 4 pairs of 16 rows, so all 16, and 4 held-out for the showcase; eval: 16 others.
    assert (calls, len(kept)) == ([26, 16], 42)
    store.close()


def test_running_it_again_does_nothing_and_says_so(prism, small, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    done = prism("run", "tiny", *small, cwd=folder)
    assert done.code == 0
    assert done.stdout.count("is finished") == 4
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == before


def test_a_changed_step_is_refused_by_name(prism, small, folder):
    done = prism("run", "tiny", *small, "rl.seed=5", cwd=folder)
    assert done.code != 0
    assert "seed" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_of_eval_is_in_its_summary(folder):
    summary = json.loads((folder / "runs/tiny/eval/summary.json").read_text())
    assert [run["id"] for run in summary["runs"]] == ["sft", "align", "rl"]
    wanted = {"accuracy/greedy", "accuracy/sampled", "well_formed/greedy", "perception/greedy", "teacher_logprob"}
    assert all(wanted <= run["metrics"].keys() for run in summary["runs"])
    assert {(pair["a"], pair["b"]) for pair in summary["pairs"]} == {("sft", "align"), ("sft", "rl"), ("align", "rl")}


def test_an_evaluation_alone_has_its_own_report(prism, folder):
    done = prism("eval", "tiny", "runs/tiny/sft", "data.size=4", "samples=1", "max_response_tokens=24", cwd=folder)
    assert done.code == 0, done.stderr
    assert "runs/eval/report.html" in done.stdout
    assert "accuracy" in (folder / "runs/eval/report.html").read_text()


def test_nothing_was_written_elsewhere(folder):
    assert {path.name for path in Path(folder).iterdir()} == {"runs"}
