import json
import os

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from prism_cli.errors import PrismError
from prism_cli.runs.references import COMPLETE
from prism_cli.trainers.callbacks import MetricsLog, ProgressBar, StepStart, StopOnNonFinite
from prism_cli.trainers.checkpoints import UNSHARDED, AlreadyTrainedError, CompleteCheckpoints


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def state(step, **more):
    return TrainerState(global_step=step, max_steps=10, **more)


def save(callback, arguments, step, **more):
    os.makedirs(f"{arguments.output_dir}/checkpoint-{step}")
    callback.on_save(arguments, state(step, **more), TrainerControl())


def complete(folder):
    return sorted(path.parent.name for path in folder.glob(f"*/{COMPLETE}"))


def test_the_marker_is_written_after_everything_else(arguments, tmp_path):
    seen = []
    watch = CompleteCheckpoints(2, UNSHARDED, lambda folder: seen.append((folder.name, complete(tmp_path))))
    save(watch, arguments, 3)
    assert seen == [("checkpoint-3", [])]
    assert complete(tmp_path) == ["checkpoint-3"]


def test_a_failed_save_leaves_the_older_checkpoints(arguments, tmp_path):
    def fail(folder):
        raise OSError("disk full")

    save(CompleteCheckpoints(1), arguments, 1)
    with pytest.raises(OSError, match="disk full"):
        save(CompleteCheckpoints(1, UNSHARDED, fail), arguments, 2)
    assert complete(tmp_path) == ["checkpoint-1"]


def test_the_newest_and_the_best_are_kept(arguments, tmp_path):
    best = str(tmp_path / "checkpoint-2")
    for step in (2, 4, 6, 10):
        save(CompleteCheckpoints(keep=2), arguments, step, best_model_checkpoint=best)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6", "checkpoint-10"}


def test_lines_past_the_checkpoint_and_a_line_cut_short_are_dropped(arguments, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.on_log(arguments, state(step), TrainerControl(), logs={"loss": step / 2})
    with open(log.path, "a") as file:
        file.write('{"step": 2, "lo')
    log.on_train_begin(arguments, state(2), TrainerControl())
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 1.0)]


def test_held_out_metrics_have_their_own_room(arguments, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_log(arguments, state(1), TrainerControl(), logs={"eval_loss": 1.0, "epoch": 0.1, "text": "left out"})
    log.on_log(arguments, state(1), TrainerControl(), logs={"train_runtime": 9.0})
    (line,) = map(json.loads, log.path.read_text().splitlines())
    assert {name: line[name] for name in line if name != "seconds"} == {"step": 1, "eval/loss": 1.0, "epoch": 0.1}


@pytest.mark.parametrize("logs", [{"loss": float("nan")}, {"loss": 1.0, "grad_norm": float("inf")}])
def test_a_number_that_is_none_stops_the_run_and_names_its_step(arguments, logs):
    with pytest.raises(PrismError, match="step 7") as caught:
        StopOnNonFinite().on_log(arguments, state(7), TrainerControl(), logs=logs)
    assert "learning_rate" in caught.value.hint


def test_finite_numbers_do_not_stop_it(arguments):
    control = TrainerControl()
    StopOnNonFinite().on_log(arguments, state(7), control, logs={"loss": 1.0, "eval_loss": 2.0})
    assert not control.should_training_stop


@pytest.mark.parametrize(("save", "stop", "log"), [(True, False, True), (False, True, True), (False, False, False)])
def test_what_will_be_saved_is_looked_at_first(arguments, save, stop, log):
    control = TrainerControl(should_save=save, should_training_stop=stop)
    StopOnNonFinite().on_step_end(arguments, state(7), control)
    assert control.should_log == log


@pytest.mark.parametrize(("step", "over"), [(9, False), (10, True), (11, True)])
def test_no_step_is_taken_after_the_last(arguments, step, over):
    try:
        StepStart().on_train_begin(arguments, state(step), TrainerControl())
        assert not over
    except AlreadyTrainedError:
        assert over


def test_progress_shows_the_numbers_that_matter(arguments, capsys):
    progress = ProgressBar("SFT", {"loss": "loss", "absent": "never"})
    progress.on_train_begin(arguments, state(0), TrainerControl())
    progress.on_step_end(arguments, state(10), TrainerControl())
    progress.on_log(arguments, state(10), TrainerControl(), logs={"loss": 0.12345, "other": 1})
    progress.on_train_end(arguments, state(10), TrainerControl())
    (line,) = capsys.readouterr().err.splitlines()
    assert "SFT: 10 of 10, took 0:00:00" in line
    assert line.endswith("loss 0.123")


def test_a_training_that_fails_leaves_the_bar_where_it_stood_once(arguments, capsys):
    progress = ProgressBar("SFT", {})
    progress.on_train_begin(arguments, state(2), TrainerControl())
    progress.on_step_end(arguments, state(3), TrainerControl())
    progress.close()
    progress.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "SFT: 3 of 10" in line
