"""A study of seconds: two arms beside the untouched start, two seeds, real worker processes."""

import json
from textwrap import dedent

import pytest

from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.sources import shipped
from prism_cli.stages.compare import Job, job_steps

STUDY = """
    name: small
    seeds: [0, 1]
    baseline: start
    shared:
      - {{stage: sft, recipe: {sft}, set: {small}}}
    arms:
      start: []
      more: [{{stage: sft, recipe: {sft_teacher}, id: more, set: {small}}}]
      {further}
    measure: {{stage: eval, recipe: {eval}, set: {{teacher: null, data.size: 12, samples: 1, max_response_tokens: 4}}}}
    metrics: [well_formed/sampled, length/sampled]
"""
SMALL = (
    "{max_steps: 2, data.size: 8, eval_data: null, batch_size: 4, checkpoint.evaluate_every: null, "
    "optimizer.learning_rate: 1e-2}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


def arm(name, values, start="sft"):
    return (
        f"{name}: [{{stage: sft, recipe: {shipped()['tiny/sft_teacher']}, id: {name}, from: {start}, set: {values}}}]"
    )


def arms(*several):
    return "\n      ".join(several)


def compare(prism, folder, *words, further="", processes=2):
    recipes = shipped()
    text = STUDY.format(
        sft=recipes["tiny/sft"],
        sft_teacher=recipes["tiny/sft_teacher"],
        eval=recipes["tiny/eval"],
        small=SMALL,
        further=further,
    )
    (folder / "study.yaml").write_text(dedent(text))
    return prism("compare", *words, f"processes={processes}", cwd=folder)


@pytest.fixture(scope="module")
def done(prism, folder):
    return compare(prism, folder)


def study(folder):
    return json.loads((folder / "runs/small/study.json").read_text())


def finishing_times(folder):
    return {
        path: json.loads(path.read_text())["finished"] for path in sorted(folder.glob("runs/small/seed-*/**/run.json"))
    }


def test_every_arm_is_measured_with_every_seed(done, folder):
    assert done.code == 0, done.stderr
    arms = study(folder)["arms"]
    assert {name: arm["seeds"] for name, arm in arms.items()} == {"start": [0, 1], "more": [0, 1]}
    assert set(arms["more"]["metrics"]) == {"well_formed/sampled", "length/sampled"}
    assert "seed 1, more: done" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_baseline_differs_from_itself_by_nothing(done, folder):
    lengths = study(folder)["arms"]["start"]["metrics"]["length/sampled"]
    assert lengths["over_seeds"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert not lengths["agree"]


def test_the_shared_steps_ran_once_a_seed(done, folder):
    trained = sorted(p.parent.relative_to(folder / "runs/small").as_posix() for p in finishing_times(folder))
    assert trained == [
        f"seed-{seed}/{step}" for seed in (0, 1) for step in ("more/eval", "more/more", "sft", "start/eval")
    ]


def test_an_arm_may_be_added_and_nothing_is_done_twice(done, prism, folder):
    before = finishing_times(folder)
    later = compare(prism, folder, further=arm("longer", SMALL), processes=1)
    assert later.code == 0, later.stderr
    assert study(folder)["arms"]["longer"]["seeds"] == [0, 1]
    after = finishing_times(folder)
    assert {path: after[path] for path in before} == before


def test_an_arm_continues_what_another_arm_trained_and_pays_for_it(done, prism, folder):
    later = compare(prism, folder, further=arm("after", SMALL, "more/more"), processes=1)
    assert later.code == 0, later.stderr
    place = folder / "runs/small/seed-0"
    run = json.loads((place / "after/after/run.json").read_text())
    assert run["from"]["run"] == "runs/small/seed-0/more/more"
    found = study(folder)["arms"]
    assert found["after"]["seconds"] > found["more"]["seconds"] > 0


def test_an_arm_may_not_start_from_a_later_one(prism, folder):
    wrong = compare(prism, folder, further=arms(arm("a", SMALL, "b/b"), arm("b", SMALL)))
    assert wrong.code == 2
    assert "arm 'a' starts from b/b, no step of an arm before it" in wrong.stderr


def test_a_failing_arm_is_named_and_the_others_are_measured(done, prism, folder):
    broken = arms(arm("broken", "{max_tokens: 3, max_steps: 1}"), arm("after", SMALL, "broken/broken"))
    failed = compare(prism, folder, "--output", "runs/broken", "seeds=[0]", further=broken, processes=1)
    assert failed.code == 1
    assert "1 arm failed:" in failed.stderr
    assert "seed 0, broken:" in failed.stderr
    assert "max_tokens = 3" in failed.stderr
    found = json.loads((folder / "runs/broken/study.json").read_text())
    assert set(found["arms"]) == {"start", "more"}
    assert list(found["failed"]) == ["seed 0, broken"]
    assert "max_tokens = 3" in found["failed"]["seed 0, broken"]
    assert not (folder / "runs/broken/seed-0/after").exists()
    page = (folder / "runs/broken/report.html").read_text()
    assert '<span class="status failed">failed</span>' in page.partition("</header>")[0]


def test_an_arm_starts_from_a_training_step_and_never_from_a_shared_evaluation(tmp_path):
    recipes = shipped()
    study = """
        name: s
        seeds: [0]
        baseline: start
        shared: [{{stage: sft, recipe: {sft}}}, {{stage: eval, recipe: {eval}, id: look}}]
        arms: {{start: [], more: [{{stage: rl, recipe: {rl}}}]}}
        measure: {{stage: eval, recipe: {eval}}}
    """
    names = {stage: recipes[f"tiny/{stage}"] for stage in ("sft", "rl", "eval")}
    (tmp_path / "study.yaml").write_text(dedent(study).format(**names))
    recipe = load_recipe("compare", tmp_path / "study.yaml", [])
    (_, rl), (_, measured) = job_steps(recipe, tmp_path, Job(0, "more"))
    assert rl.from_ == "runs/s/seed-0/sft"
    assert measured.runs == ("runs/s/seed-0/more/rl",)
    ((_, measured),) = job_steps(recipe, tmp_path, Job(0, "start"))
    assert measured.runs == ("runs/s/seed-0/sft",)
