import json
import subprocess
import sys
from pathlib import Path

import pytest

from prism_cli.errors import CheckpointError, PrismError
from prism_cli.recipes.identity import differences
from prism_cli.runs.files import write_atomically
from prism_cli.runs.folder import open_run
from prism_cli.runs.references import COMPLETE, checkpoint_step, newest_finished, resolve_model

HOLDER = """
import sys, time
from pathlib import Path
from prism_cli.runs.folder import Run, read_manifest
folder = Path(sys.argv[1])
with Run(folder, read_manifest(folder)).working():
    print("held", flush=True)
    time.sleep(60)
"""


def start(folder: Path, recipe=None, stage="sft", **options):
    recipe = {"seed": 0, "max_steps": 10} if recipe is None else recipe
    return open_run(folder, stage, recipe, "text: of it\n", differences, **options)


def finish(folder: Path, stage="sft", **options):
    with start(folder, stage=stage, **options).working() as run:
        run.model.mkdir(exist_ok=True)
    return folder


def redo(folder: Path):
    """The run, started over: created and finished at another time."""
    finish(folder, fresh=True)


def checkpoint(run, step: int, complete: bool) -> Path:
    folder = run.folder / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    if complete:
        (folder / COMPLETE).write_text("{}")
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Opening --------------------------------------------------------------------------------------------------------------


def test_a_new_run_records_what_it_is(tmp_path):
    run = start(tmp_path / "base" / "step", source={"run": "x", "checkpoint": None}, command=["prism", "sft"])
    manifest = json.loads((run.folder / "run.json").read_text())
    assert (manifest["stage"], manifest["name"], manifest["id"]) == ("sft", "base", "step")
    assert (manifest["status"], manifest["seed"], manifest["command"]) == ("running", 0, ["prism", "sft"])
    assert manifest["from"] == {"run": "x", "checkpoint": None}
    assert {"python", "torch", "trl", "prism-cli"} <= set(manifest["versions"])
    assert (run.folder / "recipe.yaml").read_text() == "text: of it\n"


def test_the_same_recipe_continues_the_run(tmp_path):
    created = start(tmp_path / "r").manifest["created"]
    finish(tmp_path / "r")
    again = start(tmp_path / "r")
    assert (again.finished, again.manifest["created"]) == (True, created)


def test_another_recipe_is_refused_and_the_keys_are_named(tmp_path):
    start(tmp_path / "r")
    with pytest.raises(CheckpointError) as caught:
        start(tmp_path / "r", {"seed": 1, "max_steps": 5})
    assert "seed: 0 there, 1 now" in str(caught.value)
    assert "max_steps: 10 there, 5 now" in str(caught.value)
    assert "--fresh" in caught.value.hint


def test_more_steps_continue_a_finished_run(tmp_path):
    finish(tmp_path / "r")
    longer = start(tmp_path / "r", {"seed": 0, "max_steps": 20})
    assert not longer.finished
    assert json.loads((tmp_path / "r/run.json").read_text())["recipe"]["max_steps"] == 20


def test_a_run_of_another_stage_is_refused(tmp_path):
    start(tmp_path / "r")
    with pytest.raises(CheckpointError, match="run of `prism sft`, not of `prism rl`"):
        start(tmp_path / "r", stage="rl")


@pytest.mark.parametrize("reference", ["runs/p/sft", "runs/p/align@4"], ids=["final model", "checkpoint"])
def test_a_run_whose_source_was_redone_is_refused_with_the_cure(pipeline, reference):
    finish(Path("runs/rl"), stage="rl", source=resolve_model(reference)[1])
    redo(Path(reference.partition("@")[0]))
    checkpoint(start(Path("runs/p/align"), stage="sft"), 4, complete=True) if "@" in reference else None
    with pytest.raises(CheckpointError, match=f"another state of {reference.partition('@')[0]}") as caught:
        start(Path("runs/rl"), stage="rl", source=resolve_model(reference)[1])
    assert "remove runs/rl" in caught.value.hint


def test_a_run_whose_source_is_unchanged_continues(pipeline):
    finish(Path("runs/rl"), stage="rl", source=resolve_model("runs/p/sft")[1])
    assert start(Path("runs/p/sft")).finished  # the same command again, which does nothing
    assert start(Path("runs/rl"), stage="rl", source=resolve_model("runs/p/sft")[1]).finished


def test_an_evaluation_names_the_runs_it_would_mix_up(pipeline):
    def source():
        return {"runs": [resolve_model(reference)[1] for reference in ("runs/p/sft", "runs/p/align@4")]}

    finish(Path("runs/eval"), stage="eval", source=source())
    assert start(Path("runs/eval"), stage="eval", source=source()).finished
    redo(Path("runs/p/sft"))
    with pytest.raises(CheckpointError, match="another state of runs/p/sft, runs/p/align"):
        start(Path("runs/eval"), stage="eval", source=source())


def test_fresh_starts_over(tmp_path):
    checkpoint(start(tmp_path / "r"), 5, complete=True)
    run = start(tmp_path / "r", {"seed": 1}, fresh=True)
    assert run.last_checkpoint() is None
    assert run.manifest["recipe"] == {"seed": 1}


@pytest.mark.parametrize("fresh", [True, False])
def test_a_folder_that_is_no_run_is_refused_and_kept(tmp_path, fresh):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_text("cat")
    with pytest.raises(CheckpointError):
        start(tmp_path / "photos", fresh=fresh)
    assert files(tmp_path / "photos") == {"cat.png"}


def test_fresh_takes_an_empty_folder(tmp_path):
    (tmp_path / "r").mkdir()
    assert start(tmp_path / "r", fresh=True).manifest["status"] == "running"


@pytest.mark.parametrize("folder", ["file/run", "/proc/run"])
def test_a_folder_that_can_not_be_written_says_so(tmp_path, folder):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="can't write the run folder") as caught:
        start(tmp_path / folder)
    assert "--output" in caught.value.hint


@pytest.mark.parametrize("text", ['{"stage": ', "[]", '{"stage": "sft"}', "\x00"])
def test_a_damaged_manifest_is_named(tmp_path, text):
    start(tmp_path / "r")
    (tmp_path / "r/run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json can't be read"):
        start(tmp_path / "r")


# Working --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"), [(None, "finished"), (KeyboardInterrupt, "interrupted"), (PrismError("x"), "failed")]
)
def test_how_it_ended_is_recorded(tmp_path, error, status):
    run = start(tmp_path / "r")
    try:
        with run.working():
            assert json.loads((tmp_path / "r/run.json").read_text())["status"] == "running"
            if error:
                raise error
    except (KeyboardInterrupt, PrismError):
        pass
    manifest = json.loads((tmp_path / "r/run.json").read_text())
    assert manifest["status"] == status
    assert (manifest["finished"] is not None) == (status == "finished")


@pytest.fixture
def held(tmp_path):
    """A run folder in which another process works."""
    finish(tmp_path / "r")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "r")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield tmp_path / "r"
        process.kill()


def test_two_processes_do_not_work_in_one_folder(held):
    with pytest.raises(CheckpointError, match="in use by another process"), start(held).working():
        pass


def test_opening_a_run_at_work_elsewhere_leaves_its_record_alone(held):
    before = (held / "run.json").read_text()
    with pytest.raises(CheckpointError, match="in use by another process"):
        start(held, command=["prism", "sft"])
    assert (held / "run.json").read_text() == before


def test_fresh_does_not_delete_a_run_that_another_process_works_on(held):
    with pytest.raises(CheckpointError, match="in use by another process"):
        start(held, fresh=True)
    assert {"run.json", "model"} <= files(held)


def test_a_killed_process_leaves_no_lock(tmp_path):
    start(tmp_path / "r")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "r")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.kill()
    with start(tmp_path / "r").working() as run:
        assert run.manifest["status"] == "running"


def test_a_failed_write_keeps_the_old_file(tmp_path):
    write_atomically(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.json", "new \ud800")
    assert (tmp_path / "a.json").read_text() == "old"


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_the_newest_complete_checkpoint_is_chosen_by_number(tmp_path):
    run = start(tmp_path / "r")
    for step in (9, 10, 2):
        checkpoint(run, step, complete=True)
    assert run.last_checkpoint().name == "checkpoint-10"


def test_half_written_checkpoints_are_never_chosen_and_are_removed(tmp_path):
    run = start(tmp_path / "r")
    checkpoint(run, 5, complete=True)
    checkpoint(run, 10, complete=False)
    assert run.last_checkpoint().name == "checkpoint-5"
    assert files(tmp_path / "r/checkpoints") == {"checkpoint-5"}


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert start(tmp_path / "r").last_checkpoint() is None


def test_a_checkpoint_is_known_by_its_number():
    assert checkpoint_step(Path("a/checkpoint-12")) == 12
    with pytest.raises(PrismError):
        checkpoint_step(Path("a/checkpoint-best"))


# References -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """runs/p with a finished sft step and an unfinished align step."""
    monkeypatch.chdir(tmp_path)
    start(Path("runs/p"), stage="run")
    finish(Path("runs/p/sft"))
    checkpoint(start(Path("runs/p/align"), stage="align"), 4, complete=True)
    checkpoint(start(Path("runs/p/align"), stage="align"), 8, complete=False)


@pytest.mark.parametrize(
    ("reference", "model", "step"),
    [
        ("runs/p/sft", "runs/p/sft/model", None),
        ("runs/p@sft", "runs/p/sft/model", None),
        ("runs/p/align@4", "runs/p/align/checkpoints/checkpoint-4", 4),
    ],
)
def test_a_reference_names_a_model(pipeline, reference, model, step):
    path, source = resolve_model(reference)
    assert path == Path(model)
    folder = Path(model).parents[0 if step is None else 1]
    # With what tells one state of a run from another: a checkpoint is of its creation, a model of its end.
    stamp = "finished" if step is None else "created"
    manifest = json.loads((folder / "run.json").read_text())
    assert source == {"run": str(folder), "checkpoint": step, stamp: manifest[stamp]}
    assert manifest[stamp]


@pytest.mark.parametrize(
    ("reference", "message", "hint"),
    [
        ("runs/nothing", "no run folder", "runs/p/sft"),
        ("runs/p", "is not a training step's folder", "runs/p@sft"),
        ("runs/p@rl", "no run folder", "runs/p/sft"),
        ("runs/p/align", "running, so it has no final model", "rerun its command"),
        ("runs/p/align@8", "no complete checkpoint of step 8", "[4]"),
        ("runs", "is not a training step's folder", "runs/p"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(pipeline, reference, message, hint):
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve_model(reference)
    assert hint in caught.value.hint


def test_a_checkpoint_of_adapters_is_no_model(pipeline):
    Path("runs/p/align/checkpoints/checkpoint-4/adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="LoRA adapters") as caught:
        resolve_model("runs/p/align@4")
    assert "runs/p/align, or" in caught.value.hint
    assert caught.value.hint.endswith("prism export runs/p/align@4")


def test_a_finished_run_without_a_model_is_not_told_to_finish(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with start(Path("runs/p/warmup"), stage="warmup").working():
        pass
    with pytest.raises(CheckpointError, match="the warmup run in runs/p/warmup has no model"):
        resolve_model("runs/p/warmup")


def test_without_runs_the_hint_says_how_to_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        resolve_model("runs/sft")
    assert "prism sft" in caught.value.hint


def test_the_newest_finished_run_is_found_at_both_depths(pipeline):
    assert newest_finished("sft") == Path("runs/p/sft")
    manifest = json.loads((finish(Path("runs/late")) / "run.json").read_text())
    write_atomically(Path("runs/late/run.json"), json.dumps({**manifest, "finished": "2999-01-01"}))
    assert newest_finished("sft") == Path("runs/late")
    assert newest_finished("align") is None
