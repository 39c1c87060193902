"""The commands as a user meets them: output, errors, exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from prism_cli import __version__
from prism_cli.cli import document
from prism_cli.cli.app import app
from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.sources import parse_value
from prism_cli.recipes.teachers import EmbeddedTeacher

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prism(*arguments):
    return CliRunner().invoke(app, arguments)


def finished_run(path, stage, finished="2026-01-01"):
    path.joinpath("model").mkdir(parents=True)
    manifest = {"stage": stage, "id": path.name, "status": "finished", "finished": finished, "recipe": {}}
    path.joinpath("run.json").write_text(json.dumps(manifest))


# The program ----------------------------------------------------------------------------------------------------------


def test_help_imports_no_heavy_library():
    code = (
        "import sys\nsys.argv = ['prism', '--help']\nfrom prism_cli.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'trl', 'datasets', 'pydantic', 'ruamel.yaml', 'openai', 'starlette')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"
    assert all(command in result.stdout for command in ("sft", "align", "rl", "eval", "run", "recipes", "doctor"))


def test_version_is_the_packages():
    assert prism("--version").stdout == f"prism {__version__}\n"


def test_an_unknown_option_is_a_usage_error():
    assert prism("sft", "--modle", "x").exit_code == 2


def test_an_error_prints_itself_and_its_hint_on_stderr():
    result = prism("sft", "no_such_recipe")
    assert result.exit_code == 2
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: no recipe 'no_such_recipe' for `prism sft`")
    assert hint == "hint: shipped for it: qwen3_vl_4b, qwen3_vl_8b, tiny"


def test_several_problems_stand_below_each_other():
    result = prism("align", "sed=1", "klx=2")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[:3] == [
        "error:",
        "override 'sed=1': sed: no such key (did you mean seed?)",
        "override 'klx=2': klx: no such key (did you mean kl?)",
    ]


def test_markup_in_a_message_is_printed_as_it_stands():
    assert "no recipe '[red]x'" in prism("align", "[red]x").stderr


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("prism_cli.recipes.load.load_recipe", None)
    assert isinstance(prism("align").exception, TypeError)


def test_the_page_of_commands_is_current():
    assert (ROOT / document.PAGE).read_text(encoding="utf-8") == document.page()


@pytest.mark.parametrize(
    "url", ["http://user:s3cret@host/v1", "http://s3cret@host/v1", "http://host/v1?key=s3cret", "http://host/v1#s3cret"]
)
@pytest.mark.parametrize("way", ["file", "option", "override", "section"])
def test_a_key_in_a_url_is_refused_and_not_repeated(folder, url, way):
    (folder / "x.yaml").write_text(f"teacher: {{endpoint: '{url}', nonsense: 1}}")
    words = {
        "file": ["x.yaml"],
        "option": ["--teacher-endpoint", url],
        "override": ["tiny", "teacher.type=openai", f"teacher.endpoint={url}"],
        "section": ["tiny", f"teacher={{type: openai, endpoint: '{url}'}}"],
    }[way]
    result = prism("align", *words)
    assert result.exit_code == 2
    assert "teacher.endpoint: a URL with a user, password or query" in result.stderr
    assert "api_key_env" in result.stderr
    assert "s3cret" not in result.output


def test_a_token_on_the_command_line_is_refused_and_not_repeated():
    result = prism("sft", "tiny", "trainer.hub_token=s3cret")
    assert result.exit_code == 2
    assert "trainer.hub_token: the stage sets this: log in with `hf auth login`" in result.stderr
    assert "s3cret" not in result.output


def test_a_penalty_that_would_meet_every_response_is_refused(folder):
    finished_run(folder / "runs/align", "align")
    order = ["rl", "tiny", "algorithm.type=dapo", "max_response_tokens=48", "--dry-run"]
    result = prism(*order, "algorithm.overlong_buffer=48")
    assert result.exit_code == 2
    assert "algorithm.overlong_buffer 48 is not below max_response_tokens 48" in result.stderr
    assert "0 switches the penalty off" in result.stderr
    for fits in (47, 0):
        result = prism(*order, f"algorithm.overlong_buffer={fits}")
        assert result.exit_code == 0, result.stderr


# Training commands ----------------------------------------------------------------------------------------------------


def test_dry_run_prints_the_whole_recipe_and_a_plan_and_writes_nothing(folder):
    result = prism("sft", "tiny", "--dry-run", "--seed", "5", "optimizer.beta2=0.9")
    assert result.exit_code == 0, result.output
    (folder.parent / "printed.yaml").write_text(result.stdout)
    assert load_recipe("sft", folder.parent / "printed.yaml") == load_recipe(
        "sft", "tiny", ["optimizer.beta2=0.9"], {"seed": 5}
    )
    assert "runs/sft" in result.stderr
    assert list(folder.iterdir()) == []


def test_every_option_reaches_its_key(folder):
    (folder / "d.jsonl").write_text('{"question": "q"}\n')
    result = prism(
        *("align", "--model", "m", "--data", "d.jsonl", "--output", "o", "--teacher-endpoint", "http://h/v1"),
        *("--teacher-model", "t", "--max-steps", "3", "--seed", "4", "--dry-run", "--max-teacher-calls", "7"),
        *("--max-teacher-usd", "2.5", "teacher.price={prompt: 1, completion: 2}"),
    )
    assert result.exit_code == 0, result.output
    recipe = parse_value(result.stdout)
    assert recipe["model"]["path"] == "m"
    assert recipe["data"]["path"] == "d.jsonl"
    assert recipe["teacher"]["endpoint"] == "http://h/v1"
    assert recipe["teacher"]["model"] == "t"
    assert (recipe["teacher"]["max_calls"], recipe["teacher"]["max_usd"]) == (7, 2.5)
    assert "1, with 0 pictures; 0 answers are kept" in result.stderr
    assert (recipe["output"], recipe["max_steps"], recipe["seed"]) == ("o", 3, 4)


def test_align_starts_from_the_newest_finished_sft_run_and_says_so(folder):
    finished_run(folder / "runs/old", "sft", "2026-01-01")
    finished_run(folder / "runs/new", "sft", "2026-02-01")
    result = prism("align", "tiny", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "starting from runs/new, the newest finished sft run here" in result.stderr
    assert "from: runs/new" in result.stdout


def test_rl_prefers_an_aligned_run_to_a_newer_sft_run(folder):
    finished_run(folder / "runs/align", "align", "2026-01-01")
    finished_run(folder / "runs/sft", "sft", "2026-02-01")
    assert "from: runs/align" in prism("rl", "tiny", "--dry-run").stdout


def test_a_named_start_is_not_overruled(folder):
    finished_run(folder / "runs/sft", "sft")
    finished_run(folder / "runs/mine", "sft", "2025-01-01")
    result = prism("align", "tiny", "--from", "runs/mine", "--dry-run")
    assert "from: runs/mine" in result.stdout
    assert "newest" not in result.stderr


def test_without_anywhere_to_start_the_flags_are_named():
    result = prism("align", "--teacher-endpoint", "http://h/v1", "--dry-run")
    assert result.exit_code == 2
    assert "--from" in result.stderr
    assert "--model" in result.stderr


def test_resume_insists_on_a_run(folder):
    result = prism("sft", "tiny", "--resume", "--dry-run")
    assert result.exit_code == 1
    assert "no run to continue in runs/sft" in result.stderr


def test_eval_takes_runs_recipe_and_values_in_any_order(folder):
    finished_run(folder / "runs/sft", "sft")
    finished_run(folder / "runs/rl", "rl")
    result = prism("eval", "samples=2", "runs/sft", "tiny", "runs/rl", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "- runs/sft\n- runs/rl\n" in result.stdout
    assert "samples: 2" in result.stdout


def test_eval_of_a_folder_that_is_no_run_says_so(folder):
    (folder / "runs/sft").mkdir(parents=True)
    result = prism("eval", "runs/sft")
    assert result.exit_code == 2
    assert "no recipe 'runs/sft' for `prism eval`: neither a run folder" in result.stderr


def test_run_plans_every_step_of_a_pipeline():
    result = prism("run", "tiny", "--dry-run", "align.max_steps=3")
    assert result.exit_code == 0, result.output
    assert "prism align from sft" in result.stderr
    assert "max_steps: 3" in result.stdout


# Recipes --------------------------------------------------------------------------------------------------------------


def test_list_gives_each_shipped_recipe_with_its_first_comment():
    rows = json.loads(prism("recipes", "list", "--json").stdout)
    assert {"name": "tiny/sft", "about": "prism sft tiny"} in rows
    assert "tiny/sft" in prism("recipes", "list").stdout


def test_show_prints_the_file_untouched_in_a_pipe():
    assert prism("recipes", "show", "tiny/rl").stdout == (ROOT / "recipes/tiny/rl.yaml").read_text()


def test_show_of_an_unknown_name_lists_the_known():
    result = prism("recipes", "show", "tyni")
    assert result.exit_code == 2
    assert "tiny/rl" in result.stderr


def test_copy_takes_a_set_and_never_overwrites(folder):
    assert prism("recipes", "copy", "tiny", "mine").exit_code == 0
    (folder / "mine/rl.yaml").write_text("seed: 1")
    result = prism("recipes", "copy", "tiny/rl", "mine")
    assert result.exit_code == 2
    assert "already there: mine/rl.yaml" in result.stderr
    assert (folder / "mine/rl.yaml").read_text() == "seed: 1"
    assert prism("recipes", "copy", "tiny", "whole").exit_code == 0
    assert prism("run", "whole", "--dry-run").exit_code == 0


def test_check_finds_the_problems_of_all_files(folder):
    Path("align.yaml").write_text("sed: 1")
    Path("my_rl.yaml").write_text("\nkl: x")
    Path("sft.yaml").write_text("seed: 1")
    result = prism("recipes", "check", "align.yaml", "my_rl.yaml", "sft.yaml")
    assert result.exit_code == 2
    assert result.stdout.splitlines() == ["wrong  align.yaml", "wrong  my_rl.yaml", "ok     sft.yaml"]
    assert "align.yaml:1: sed: no such key" in result.stderr
    assert "my_rl.yaml:2: kl: expected a number" in result.stderr


def test_check_looks_into_a_studys_steps(folder):
    Path("sft.yaml").write_text("model: {type: tiny}\ndata: {type: world, size: 8}\n")
    step, eval_ = "{stage: sft, recipe: sft.yaml, set: {max_stepz: 1}}", "{stage: eval, recipe: sft.yaml}"
    Path("study.yaml").write_text(f"name: s\nbaseline: a\narms: {{a: [{step}]}}\nmeasure: {eval_}\n")
    result = prism("recipes", "check", "study.yaml")
    assert result.exit_code == 2
    assert "max_stepz" in result.stderr
    assert "study.yaml, step 'eval'" in result.stderr


def test_check_looks_into_a_pipelines_steps(folder):
    Path("pipeline.yaml").write_text("name: p\nsteps: [{stage: sft, recipe: mine.yaml, set: {sed: 1}}]")
    Path("mine.yaml").write_text("")
    result = prism("recipes", "check", "pipeline.yaml")
    assert result.exit_code == 2
    assert "step 'sft', set: sed: no such key (did you mean seed?)" in result.stderr


def test_check_without_files_checks_the_shipped_ones():
    result = prism("recipes", "check")
    assert result.exit_code == 0
    assert "tiny/align.yaml" in result.stdout


def test_check_asks_for_the_stage_a_name_does_not_tell():
    Path("mine.yaml").write_text("seed: 1")
    assert "does not contain the stage" in prism("recipes", "check", "mine.yaml").stderr
    assert prism("recipes", "check", "mine.yaml", "--stage", "rl").exit_code == 0


# Doctor and teacher ---------------------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_where_the_tests_run():
    result = prism("doctor", "--json")
    assert result.exit_code == 0
    states = {finding["what"]: finding["state"] for finding in json.loads(result.stdout)}
    assert states["trl"] == states["python"] == states["run folder"] == "ok"


def test_doctor_fails_where_runs_can_not_be_written(folder):
    (folder / "runs").write_text("a file")
    result = prism("doctor")
    assert result.exit_code == 1


def test_serve_knows_the_worlds_and_variants_that_recipes_know():
    from prism_cli.cli.teacher import serve

    for name in ("world", "variant"):
        option = get_args(serve.__annotations__[name])[0]
        assert get_args(option) == get_args(EmbeddedTeacher.model_fields[name].annotation)


def test_serve_announces_its_url_and_stops_cleanly_on_ctrl_c():
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "prism_cli", "teacher", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert "at http://127.0.0.1:" in process.stdout.readline()
        assert "prism align --teacher-endpoint http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output.endswith("stopped\n")
    assert errors == ""


def test_an_interrupt_says_how_to_continue(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("prism_cli.recipes.load.load_recipe", interrupted)
    result = prism("sft")
    assert result.exit_code == 130
    assert result.stderr == "interrupted: run the same command again to continue\n"
