"""`prism drift` on a policy that can speak, and an alignment that ends when drift is flat."""

import json
import signal

import pytest
from safetensors.torch import load_file
from torch import equal

from prism_cli.assembly.endpoint import world_app
from prism_cli.assembly.response import grammar_of
from prism_cli.recipes.sections import ResponseSection
from prism_cli.teacher.server import ServedEndpoint

# 160 responses are two batches, so that a kill may fall between them.
SMALL = ["data.size=80", "samples=2"]
ALIGN = (
    "data.size=64 eval_data=null prompts_per_step=4 rollouts=4 micro_batch=16 max_response_tokens=56 max_steps=20 "
    "checkpoint.every=3 discriminator.warmup.pairs=32 discriminator.warmup.held_out=8 discriminator.probe_every=8 "
    "discriminator.warmup.batch_size=16 discriminator.warmup.epochs=1 discriminator.warmup.stop_in=null"
)
# Drift can't fall by more than 1, so the second measurement ends it: at step 8 of 20.
STOP = "stop={min_steps: 8, every: 4, patience: 1, delta: 1}"


def result(folder):
    return json.loads((folder / "drift.json").read_text())


@pytest.fixture(scope="module")
def measured(prism, trained, tmp_path_factory):
    """A folder with a finished measurement whose teacher was an endpoint that is gone now."""
    folder = tmp_path_factory.mktemp("drift")
    with ServedEndpoint(world_app("shapes", "exact", grammar_of(ResponseSection()))) as server:
        teacher = [
            "--teacher-endpoint",
            server.url,
            "--teacher-model",
            "shapes-exact",
            "--teacher-store",
            "kept.sqlite",
        ]
        done = prism("drift", trained, "tiny", *SMALL, *teacher, "--output", "first", cwd=folder)
    assert done.code == 0, done.stderr
    folder.joinpath("table").write_text(done.stdout)
    return folder


def test_each_part_has_its_drift_and_its_counts(measured):
    (run,) = result(measured / "first")["runs"]
    parts = ("perception", "reasoning")
    wanted = {f"{name}/{part}" for name in ("drift", "extra_words", "extra_steps", "extra_items") for part in parts}
    assert wanted | {"well_formed"} <= run["metrics"].keys()
    for part in parts:
        drift = run["metrics"][f"drift/{part}"]
        # It learned from this teacher and speaks its words: near, and the interval is one of prompts.
        assert 0.3 < drift["low"] < drift["value"] < drift["high"] < 0.9
        assert 60 <= drift["n"] <= 80
        assert 5 < run["counts"][part]["words"]["teacher"] < 40
    assert "drift perception" in (measured / "table").read_text()
    assert "drift perception" in (measured / "first/report.html").read_text()


def test_a_store_alone_will_do_and_json_is_all_that_is_printed(prism, trained, measured):
    again = prism(
        "drift", trained, "tiny", *SMALL, "--teacher-store", "kept.sqlite", "--output", "second", "--json", cwd=measured
    )
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout) == result(measured / "first") == result(measured / "second")


def test_a_store_without_the_answers_is_refused_by_their_number(prism, trained, measured):
    more = ["data.size=90", "samples=2", "--teacher-store", "kept.sqlite", "--output", "third"]
    done = prism("drift", trained, "tiny", *more, cwd=measured)
    assert done.code == 1
    assert "kept.sqlite has no answer to 10 of 90 questions" in done.stderr


def test_a_killed_measurement_continues(prism, trained, measured):
    order = ["drift", trained, "tiny", *SMALL, "--teacher-store", "kept.sqlite", "--output", "killed"]
    second = ("prism_cli.evaluation.sampling:sample_responses", 2)
    assert prism(*order, cwd=measured, kill=second).code == -signal.SIGKILL
    (samples,) = (measured / "killed").glob("responses-*.jsonl")
    kept = samples.read_text()
    assert kept.count("\n") == 128
    assert prism(*order, cwd=measured, kill=second).code == 0
    assert samples.read_text().startswith(kept)
    assert result(measured / "killed") == result(measured / "first")


def test_too_few_prompts_say_so(prism, trained, tmp_path):
    done = prism("drift", trained, "tiny", "data.size=5", "samples=1", "--output", "few", cwd=tmp_path)
    assert done.code == 1
    assert "of 5 prompts too few have a well-formed response" in done.stderr
    assert "Traceback" not in done.stderr


def test_alignment_ends_when_drift_is_flat_and_a_continued_one_at_the_same_step(prism, trained, tmp_path):
    def align(name, **options):
        words = ["align", "tiny", "--from", trained, *ALIGN.split(), STOP, "--output", name]
        return prism(*words, cwd=tmp_path, **options)

    # The seventh step, after two of the warm-up: the checkpoint of step 6 is there, the second measurement's window is
    # half full.
    seventh = ("prism_cli.discriminator.learner:DiscriminatorLearner.score_and_update", 2 + 7)
    assert align("killed", kill=seventh).code == -signal.SIGKILL
    assert (tmp_path / "killed/checkpoints/checkpoint-6/complete.json").is_file()
    for name in ("straight", "killed"):
        done = align(name)
        assert done.code == 0, done.stderr
        manifest = json.loads((tmp_path / name / "run.json").read_text())
        assert (manifest["status"], manifest["stopped"]["step"]) == ("finished", 8)
        assert "no part's drift fell" in manifest["stopped"]["why"]
        assert (tmp_path / name / "checkpoints/checkpoint-8/complete.json").is_file()
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "killed")
    ]
    assert [line["step"] for line in lines[0]] == list(range(1, 9))
    watched = [[{k: v for k, v in line.items() if k.startswith(("drift/", "shortcuts/"))} for line in x] for x in lines]
    assert watched[0] == watched[1]
    assert [sorted(line)[:2] for line in watched[0] if line] == [["drift/perception", "drift/reasoning"]] * 2
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("straight", "killed")]
    assert all(equal(weights[0][key], weights[1][key]) for key in weights[0])
