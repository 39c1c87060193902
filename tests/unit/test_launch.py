"""How a stage is started on several processes: the command, the nodes, what an end is called, and Slurm's script."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from prism_cli import processes
from prism_cli.assembly import launch
from prism_cli.cli.app import app
from prism_cli.errors import BudgetError, PrismError, RecipeError, Terminated
from prism_cli.launching import launcher, slurm, worker
from prism_cli.launching.command import Launch, check_machine, command, shown
from prism_cli.launching.nodes import Place, first_host, place
from prism_cli.launching.worker import Failure
from prism_cli.recipes.load import FLAGS, load_recipe

STEP = {
    "SLURM_JOB_ID": "4711234",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODEID": "1",
}


@pytest.fixture(autouse=True)
def started_by_nobody(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", worker.FOLDER):
        monkeypatch.delenv(name, raising=False)


def recipe(*overrides, stage="sft"):
    return load_recipe(stage, "tiny", overrides)


# Which node this is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("node[01-03,7],login", "node01"),
        ("gpu[8,11-12].cluster", "gpu8.cluster"),
        ("r[1-2]n[03-04],x[5-6]", "r1n03"),
        ("rack-2-[10-12]", "rack-2-10"),
    ],
)
def test_the_first_host_of_a_list_is_found(names, first):
    assert first_host(names) == first


def test_slurm_says_which_node_this_is_and_every_node_finds_the_same_door():
    assert place(2, STEP) == Place(1, "gpu07", 21234)
    assert place(2, {**STEP, "SLURM_NODEID": "0"}) == Place(0, "gpu07", 21234)
    assert place(2, {**STEP, "MASTER_PORT": "29999"}) == Place(1, "gpu07", 29999)


def test_variables_say_which_node_this_is():
    there = {"MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "29501", "NODE_RANK": "1"}
    assert place(2, there) == Place(1, "10.0.0.5", 29501)
    assert place(1, there) == Place(0, "127.0.0.1", 0)  # one node asks nobody
    assert place(1, {"SLURM_JOB_ID": "1"}) == Place(0, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("nodes", "environ", "told", "hint"),
    [
        (2, {}, "MASTER_ADDR, MASTER_PORT, NODE_RANK not set", "srun"),
        (2, {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "2"}, "NODE_RANK is 2", "launch.nodes"),
        (2, {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "x"}, "NODE_RANK is 'x', no number", "launch.md"),
        (3, STEP, "launch.nodes is 3, and Slurm runs this command on 2", "launch.nodes=2"),
        (1, STEP, "launch.nodes is 1, and Slurm runs this command on 2", "launch.nodes=2"),
        (2, {**STEP, "SLURM_STEP_NUM_TASKS": "16"}, "16 tasks on 2 nodes", "--ntasks-per-node=1"),
        (2, {"SLURM_JOB_ID": "1", "SLURM_NNODES": "2"}, "runs on one node only", "srun --ntasks-per-node=1"),
    ],
)
def test_a_node_that_can_not_find_the_others_is_refused(nodes, environ, told, hint):
    with pytest.raises(RecipeError) as raised:
        place(nodes, environ)
    assert told in str(raised.value)
    assert hint in raised.value.hint


# What is started -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        ([], False),
        (["launch.processes=2"], True),
        (["launch.nodes=2"], True),
        (["launch.zero=2"], True),
    ],
)
def test_processes_are_started_where_the_recipe_says_so_and_nobody_has_yet(overrides, answer, monkeypatch):
    assert (launch.to_start(recipe(*overrides)) is not None) is answer
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.to_start(recipe(*overrides))


def test_what_has_no_launch_section_runs_here():
    assert not launch.to_start(load_recipe("eval", "tiny"))


def test_the_command_can_be_parsed_by_accelerate_and_pasted_into_a_shell():
    from accelerate.commands.launch import launch_command_parser

    words = ["sft", "my recipe.yaml", "launch.processes=8", "--max-steps", "3"]
    line = shown(words, Launch(processes=8))
    assert line.startswith("accelerate launch --multi_gpu --num_processes 8 --num_machines 1 ")
    read = launch_command_parser().parse_args(shlex.split(line)[2:])
    assert (read.num_processes, read.main_process_port, read.module) == (8, 0, True)
    assert (read.training_script, read.training_script_args) == ("prism_cli", words)

    words = command(["sft", "a.yaml"], Launch(processes=4, nodes=2), Place(1, "gpu07", 21234))
    read = launch_command_parser().parse_args(words[2:])
    assert (read.num_processes, read.num_machines, read.machine_rank) == (8, 2, 1)
    assert (read.main_process_ip, read.main_process_port, read.same_network) == ("gpu07", 21234, True)


def test_on_several_nodes_the_shown_command_leaves_the_node_to_the_shell():
    line = shown(["sft", "a.yaml"], Launch(nodes=2))
    told = subprocess.run(
        ["sh", "-c", f"for word in {line}; do echo $word; done"],
        env={"NODE_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "21234"},
        capture_output=True,
        text=True,
    ).stdout.split()
    assert told == command(["sft", "a.yaml"], Launch(nodes=2), Place(1, "gpu07", 21234))


def test_more_processes_than_gpus_are_refused_and_a_cpu_takes_any_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert check_machine(Launch(4)) == "4, a GPU each"
    with pytest.raises(RecipeError, match="8, and this machine has 4 GPUs") as raised:
        check_machine(Launch(8))
    assert "launch.processes=4" in raised.value.hint
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert check_machine(Launch(8)) == "8, on the CPU"


def test_processes_and_shards_are_told_in_words():
    launched = recipe("launch={processes: 8, nodes: 2, zero: 3, offload: true}")
    assert launch.launch_of(launched).describe() == "2 nodes × 8, DeepSpeed ZeRO-3 with offload"


def test_without_deepspeed_zero_says_what_to_install(monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="DeepSpeed is not installed") as raised:
        check_machine(Launch(zero=2))
    assert raised.value.hint.startswith("pip install 'prism-cli[deepspeed]'")


def test_a_pipeline_over_several_nodes_is_refused(run_prism):
    code, _, err = run_prism("run", "tiny", "sft.launch.nodes=2", "--dry-run")
    assert code == 2
    assert "step 'sft' wants 2 nodes, and a pipeline runs on one" in err


# How it ended --------------------------------------------------------------------------------------------------------


def ending(ends, told=(), stopped=None):
    with pytest.raises((PrismError, KeyboardInterrupt)) as raised:
        launcher.raise_why(ends, list(told), 4, stopped)
    return raised.value


def test_a_killed_process_is_the_cause_whatever_the_others_told():
    lost = Failure(0, 5.0, 1, "another process ended")
    error = ending({0: (1, 100.0), 2: (-9, 100.0), 1: (-15, 101.0)}, [lost])
    assert str(error) == "process 2 of 4 was killed (signal 9, SIGKILL)"
    assert "memory" in error.hint


def test_a_process_that_torch_ended_late_is_not_the_cause():
    found = Failure(1, 5.0, 3, "the budget is spent", ("raise it", ()))
    error = ending({1: (3, 100.0), 0: (-9, 131.0)}, [found])
    assert (str(error), error.hint, error.exit_code) == ("the budget is spent", "raise it", 3)


def test_a_reported_error_is_printed_with_its_option_as_any_other(monkeypatch, tmp_path):
    cap = BudgetError("the budget of $2 is used up", "raise {max_usd} and run the same command again", ("max_usd",))
    cap.in_section("teacher")
    monkeypatch.setenv(worker.FOLDER, str(tmp_path))
    assert not worker.should_print(cap)
    error = ending({0: (3, 100.0)}, worker.failures(tmp_path))
    assert (str(error), error.exit_code) == ("teacher: the budget of $2 is used up", 3)
    assert error.advice(FLAGS) == "raise teacher.max_usd (--max-teacher-usd) and run the same command again"


@pytest.mark.parametrize("code", [1, 2, 3])
def test_the_first_that_told_is_believed_and_its_exit_code_comes_through(code):
    told = [Failure(3, 5.0, code, "rows.jsonl row 1"), Failure(0, 6.0, 1, "the others failed")]
    error = ending({0: (1, 100.0), 3: (code, 100.0)}, told)
    assert (str(error), error.exit_code) == ("rows.jsonl row 1", code)


def test_a_bug_shows_its_traceback_once(capsys):
    told = [Failure(n, 5.0 + n, 1, "ValueError: no", trace=f"Traceback of {n}\n") for n in range(4)]
    assert str(ending(dict.fromkeys(range(4), (1, 100.0)), told)) == "process 0 of 4 failed: ValueError: no"
    assert capsys.readouterr().err == "Traceback of 0\n"


def test_what_was_asked_to_end_was_interrupted():
    ends = {0: (130, 100.0), 1: (-9, 100.0)}
    assert type(ending(ends, stopped=signal.SIGINT)) is KeyboardInterrupt
    assert type(ending(ends, stopped=signal.SIGTERM)) is Terminated
    assert type(ending({0: (130, 100.0)}, [Failure(0, 5.0, 130, "interrupted")])) is KeyboardInterrupt
    assert type(ending({0: (143, 100.0)}, [Failure(0, 5.0, 143, "interrupted")])) is Terminated


def test_a_process_that_said_nothing_is_told_by_its_exit_code():
    assert str(ending({2: (7, 100.0)})) == "process 2 of 4 ended with exit code 7"


def started(tmp_path, code, launcher=None):
    """Runs code as a process of this launcher."""
    (tmp_path / "launcher.json").write_text(json.dumps(launcher or os.getpid()))
    (tmp_path / "command.json").write_text('["prism", "sft", "as typed"]')
    environ = {**os.environ, worker.FOLDER: str(tmp_path), "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)


def test_a_started_process_tells_its_launcher_and_prints_nothing(tmp_path):
    code = "import sys; sys.argv = ['prism', 'sft', 'nowhere.yaml']; from prism_cli.__main__ import main; main()"
    done = started(tmp_path, code)
    assert (done.returncode, done.stderr) == (2, "")
    (failure,) = worker.failures(tmp_path)
    assert (failure.rank, failure.exit_code, failure.trace) == (0, 2, None)
    assert "nowhere.yaml" in failure.message


def test_a_bug_in_a_started_process_goes_to_its_launcher_with_its_traceback(tmp_path):
    code = "from prism_cli.launching.worker import Working, command\nwith Working():\n  raise ValueError(command()[2])"
    done = started(tmp_path, code)
    assert (done.returncode, done.stderr) == (1, "")
    (failure,) = worker.failures(tmp_path)
    assert failure.message == "ValueError: as typed"
    assert "Traceback" in failure.trace


def test_a_process_whose_launcher_has_gone_does_not_start(tmp_path):
    done = started(
        tmp_path, "from prism_cli.launching.worker import Working\nwith Working(): print('worked')", launcher=1
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_cudas_allocator_is_set_before_torch_is_loaded_unless_the_user_has_set_it():
    code = """
import json, os, sys
import prism_cli.__main__ as program
program.app = lambda **_: print(json.dumps([os.environ.get(n) for n in sys.argv[1:]] + ["torch" in sys.modules]))
program.main()
"""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    for given, wanted in (
        ({}, ["expandable_segments:True"] * 2),
        ({names[0]: "max_split_size_mb:64"}, ["max_split_size_mb:64", None]),
        ({names[1]: "expandable_segments:False"}, [None, "expandable_segments:False"]),
    ):
        done = subprocess.run([sys.executable, "-c", code, *names], env=bare | given, capture_output=True, text=True)
        assert json.loads(done.stdout) == [*wanted, False], done.stderr


# Slurm's script ------------------------------------------------------------------------------------------------------


def test_the_script_runs_the_command_on_each_node_and_hands_it_in_again_when_time_is_up(tmp_path):
    script = tmp_path / "job.sbatch"
    words = ["sft", "my recipe.yaml", "launch.nodes=2"]
    slurm.write(script, "sft", [Launch(processes=8, nodes=2)], words)
    text = script.read_text()
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue", "--signal=TERM@1800"):
        assert f"#SBATCH {line}\n" in text
    assert "prism sft 'my recipe.yaml' launch.nodes=2\n" in text
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert ran(tmp_path, script, 143) == (
        143,
        ["srun --kill-on-bad-exit=0 prism sft my recipe.yaml launch.nodes=2", "scontrol requeue 7"],
    )
    assert ran(tmp_path, script, 0)[0] == 0
    assert ran(tmp_path, script, 1)[1][1:] == []  # what failed would fail again
    assert ran(tmp_path, script, 130)[1][1:] == []  # who pressed Ctrl-C wants it ended


@pytest.mark.parametrize(
    ("step", "save", "seconds"),
    [(0.4, 2.0, 300), (180.0, 70.0, 540), (170.0, 900.0, 2160)],
)
def test_the_signal_leaves_time_for_the_longest_step_and_save_of_the_run_so_far(tmp_path, step, save, seconds):
    for number, part in ((50, 0.5), (100, 1.0), (150, 0.9)):
        folder = tmp_path / f"road/rl/checkpoints/checkpoint-{number}"
        folder.mkdir(parents=True)
        marker = {"step": number, "step_seconds": part * step, "save_seconds": part * save}
        (folder / "complete.json").write_text(json.dumps(marker))
    found = slurm.grace(tmp_path / "road")
    assert found.seconds == seconds
    slurm.write(tmp_path / "job", "sft", [Launch()], ["sft"], found)
    assert f"#SBATCH --signal=TERM@{seconds}\n" in (tmp_path / "job").read_text()
    assert slurm.grace(tmp_path / "not_begun").seconds == 1800


def ran(tmp_path, script, code):
    """Exit code and commands of the script where Slurm's programs only tell what they are given."""
    told = tmp_path / "told"
    told.write_text("")
    for name, end in (("srun", code), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {told}\nexit {end}\n')
        program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    done = subprocess.run(["bash", script], env=environ)
    return done.returncode, told.read_text().splitlines()


@pytest.fixture
def run_prism(monkeypatch, tmp_path):
    """Runs a command in this process; its exit code and streams."""
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["prism", *words])
        done = CliRunner().invoke(app, list(words))
        return done.exit_code, done.stdout, done.stderr

    return run


def test_dry_run_shows_the_command_that_was_typed(run_prism, tmp_path):
    code, _, err = run_prism("sft", "tiny", "launch.processes=2", "--dry-run")
    assert code == 0
    assert "--num_processes 2" in err
    assert err.endswith("--module prism_cli sft tiny launch.processes=2\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [("--sbatch", "job.sh"), ("--sbatch=job.sh",)])
def test_sbatch_writes_the_command_without_itself_and_runs_nothing(run_prism, tmp_path, given):
    code, _, _ = run_prism("sft", *given, "tiny", "launch.processes=4")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["job.sh"]
    assert "prism sft tiny launch.processes=4\n" in (tmp_path / "job.sh").read_text()
    code, _, err = run_prism("sft", *given, "tiny")
    assert code == 2
    assert "is there already" in err


def test_the_script_of_a_pipeline_asks_for_what_its_largest_step_takes(run_prism, tmp_path):
    code, _, err = run_prism("run", "tiny", "sft.launch.processes=4", "--sbatch", "job.sh")
    assert code == 0, err
    assert "#SBATCH --gpus-per-node=4\n" in (tmp_path / "job.sh").read_text()


def test_a_job_that_would_start_over_each_time_is_refused(run_prism, tmp_path):
    code, _, err = run_prism("sft", "tiny", "--sbatch", "job.sh", "--fresh")
    assert code == 2
    assert "leave out --resume and --fresh" in err
    assert list(tmp_path.iterdir()) == []
