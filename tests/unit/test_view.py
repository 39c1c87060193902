"""`prism view`: which run, whether it is going, and whether its page is stale."""

import fcntl
import json
import os

import pytest
from typer.testing import CliRunner

from prism_cli.cli.app import app
from prism_cli.errors import CheckpointError
from prism_cli.stages import view


def add_run(place: str, stage: str = "sft", status: str = "finished", minute: int = 0):
    folder = view.Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    created = f"2026-11-23T10:{minute:02d}:00.000+00:00"
    manifest = {"stage": stage, "id": folder.name, "name": "x", "status": status, "recipe": {}, "created": created}
    (folder / "run.json").write_text(json.dumps(manifest))
    os.utime(folder / "run.json", (1_700_000_000 + minute, 1_700_000_000 + minute))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_is_found_by_folder_name_step_or_as_the_newest():
    pipeline, step, lone = add_run("runs/p", "run"), add_run("runs/p/sft"), add_run("runs/lone", minute=1)
    assert view.find("runs/p") == view.find("p") == pipeline
    assert view.find("p@sft") == step
    assert view.find(None) == lone
    add_run("runs/p/sft", minute=2)
    assert view.find(None) == pipeline
    with pytest.raises(CheckpointError, match="no run in nowhere") as caught:
        view.find("nowhere")
    assert caught.value.hint == "runs here: runs/lone, runs/p, runs/p/sft"


def test_a_killed_run_is_not_going():
    folder = add_run("runs/a", status="running")
    assert not view.is_going(folder)
    with open(folder / ".lock", "w") as lock:
        assert not view.is_going(folder)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert view.is_going(folder)


def test_a_page_is_written_anew_only_when_a_file_of_the_run_is_newer():
    folder = add_run("runs/a")
    page = view.page(folder)
    os.utime(page, (1_800_000_000, 1_800_000_000))
    before = view.version(folder)
    assert view.page(folder).stat().st_mtime == 1_800_000_000
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    os.utime(folder / "metrics.jsonl", (1_900_000_000, 1_900_000_000))
    assert view.version(folder) != before
    assert "loss" in view.page(folder).read_text()


def test_a_page_of_an_older_prism_is_written_anew():
    folder = add_run("runs/a")
    (folder / "report.html").write_text("older")
    os.utime(folder / "report.html", (1_700_000_001, 1_700_000_001))
    assert "older" not in view.page(folder).read_text()


def test_what_is_no_part_of_the_page_changes_no_version():
    folder = add_run("runs/a")
    before = view.version(folder)
    (folder / "report.html").write_text("x")
    (folder / ".lock").write_text("")
    assert view.version(folder) == before


def test_the_command_prints_where_the_page_is_and_says_what_runs_there_are():
    add_run("runs/a")
    shown = CliRunner().invoke(app, ["view", "a", "--no-browser"])
    assert (shown.exit_code, shown.output) == (0, "runs/a/report.html\n")
    missing = CliRunner().invoke(app, ["view", "b"])
    assert missing.exit_code == 1
    assert "hint: runs here: runs/a" in missing.output
