"""Trackers get the metrics and the kept rollouts of a run, once."""

import json
import time

import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from prism_cli.assembly import tracking
from prism_cli.errors import RecipeError
from prism_cli.recipes.stages import SFTRecipe
from prism_cli.runs.folder import Run
from prism_cli.trainers.rollout_log import RolloutLog, Rollouts
from prism_cli.trainers.trackers import TensorBoard, TrackedRun, WandB

PICTURE = Image.new("RGB", (8, 8), "red")


def train(folder, tracker, first, last):
    """The steps after `first` up to `last`, as a training run would log them."""
    run = TrackedRun(folder, "prism", "tiny/rl", "0123456789ab", {"stage": "rl", "group": "tiny"})
    callback, control = tracker(run), TrainerControl()
    arguments = TrainingArguments(output_dir=str(folder / "secret-place"), report_to="none", use_cpu=True)
    state = TrainerState(global_step=first, max_steps=last)
    log = RolloutLog(folder, 1, [callback.rollouts])
    for one in (callback, log):
        one.on_train_begin(arguments, state, control, model=None)
    for state.global_step in range(first + 1, last + 1):
        rows = [{"id": "a", "source": "", "prompt": [{"content": "q?"}], "answers": ["a"], "images": [PICTURE]}]
        log.keep(state.global_step, Rollouts(rows, ["<answer>a</answer>"], [None], {"accuracy": [1.0]}, [3]))
        callback.on_log(arguments, state, control, logs={"discriminator/accuracy/perception": 0.5})
    callback.on_train_end(arguments, state, control)


def test_what_is_written_to_rollouts_jsonl_is_heard_too(tmp_path):
    heard = []
    log = RolloutLog(tmp_path, 1, [lambda step, prompts: heard.append({"step": step, "prompts": prompts})])
    rows = [{"id": "a", "source": "", "prompt": [{"content": "q?"}], "answers": ["a"], "images": [PICTURE]}]
    log.keep(1, Rollouts(rows, ["text"], [None], {"accuracy": [1.0]}, [3]))
    assert [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()] == heard


def test_a_run_is_told_without_addresses_and_keeps_its_identity_until_started_over(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-mine")
    recipe = SFTRecipe.model_validate({"trainer": {"report_to": ["wandb"]}})
    manifest = {"name": "tiny", "id": "sft", "stage": "sft", "created": "2026-11-23T10:00:00.000+00:00"}
    manifest |= {"recipe": {"teacher": {"endpoint": "http://me:key@host/v1", "api_key_env": "MINE"}, "seed": 0}}
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)

    def tracked(**changes):
        (callback,) = tracking.trackers(recipe.trainer, Run(tmp_path, manifest | changes))
        return callback.run

    first = tracked()
    assert (first.project, first.name) == ("prism", "tiny/sft")
    text = json.dumps(first.config)
    assert not any(secret in text for secret in ("host", "MINE", "secret-of-mine"))
    assert tracked().id == first.id
    assert tracked(created="2026-11-24T10:00:00.000+00:00").id != first.id


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_loaded(monkeypatch):
    recipe = SFTRecipe.model_validate({"trainer": {"report_to": "trackio"}})
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="trackio is not installed") as caught:
        tracking.check(recipe.trainer)
    assert "pip install trackio" in caught.value.hint


def test_a_tracker_that_is_opened_here_is_not_opened_by_transformers_again():
    assert tracking.left_to_transformers({"report_to": ["wandb", "mlflow"]}) == {"report_to": ["mlflow"]}
    assert tracking.left_to_transformers({"report_to": "tensorboard", "x": 1}) == {"report_to": "none", "x": 1}
    assert tracking.left_to_transformers({}) == {}


def test_tensorboard_has_scalars_texts_and_pictures_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, TensorBoard, 0, 3)
    train(tmp_path, TensorBoard, 2, 4)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [one.step for one in found.Scalars("train/discriminator/accuracy/perception")] == [1, 2, 3, 4]
    assert "rollouts/1/1" in found.Tags()["images"]


def test_wandb_works_without_a_network_and_writes_neither_key_nor_path(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)
    train(tmp_path, WandB, 0, 2)
    (file,) = tmp_path.glob("wandb/offline-run-*-0123456789ab/*.wandb")
    # Its own process writes the last of it.
    for _ in range(100):
        if b"tiny/rl" in file.read_bytes():
            break
        time.sleep(0.1)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"train/discriminator/accuracy/perception" in file.read_bytes()
    assert b"tiny/rl" in file.read_bytes()
    assert list(tmp_path.rglob("media/table/*.json")), "the rollouts' table"
    assert b"0123456789abcdef0123456789abcdef" not in written
    assert b"secret-place" not in written
