"""Trackers get what a run's folder gets, under the same names, once."""

import json
import time
from types import SimpleNamespace

import pytest

from prism_cli.assembly import tracking
from prism_cli.errors import RecipeError
from prism_cli.recipes.stages import SFTRecipe
from prism_cli.runs.folder import Run
from prism_cli.trainers.trackers import TensorBoard, Tracked, Tracking, WandB

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
ROLLOUT = {"text": "<answer>a</answer>", "problem": None, "length": 3, "rewards": {"accuracy": 1.0}}
PROMPT = {"question": "q?", "answers": ["a"], "images": [PICTURE], "teacher": None, "rollouts": [ROLLOUT]}


class Listener:
    """A tracker that remembers."""

    def __init__(self, run, step):
        self.step, self.heard, self.ended = step, [], False

    def metrics(self, step, values):
        self.heard.append((step, values))

    def rollouts(self, step, prompts):
        self.heard.append((step, prompts[0]["question"]))

    def end(self):
        self.ended = True


def train(folder, opener, first, last, run=None):
    """The steps after `first` up to `last`, as a training run would log them."""
    run = run or Tracked(folder, "prism", "tiny/rl", "0123456789ab", {"stage": "rl", "group": "tiny"})
    tracking_ = Tracking(run, [opener])
    state = SimpleNamespace(is_world_process_zero=True, global_step=first)
    tracking_.on_train_begin(None, state, None)
    for step in range(first, last):
        tracking_.on_step_begin(None, state, None)
        state.global_step = step + 1
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step + 1, "seconds": 1.0, "discriminator/accuracy/perception": 0.5}) + "\n")
        with open(folder / "rollouts.jsonl", "a") as file:
            file.write(json.dumps({"step": step + 1, "prompts": [PROMPT]}) + "\n")
        tracking_.on_log(None, state, None)
    tracking_.on_train_end(None, state, None)
    return tracking_.trackers[0]


def test_every_line_is_passed_on_once_under_its_own_names(tmp_path):
    heard = train(tmp_path, Listener, 0, 2)
    assert heard.heard == [
        (1, {"discriminator/accuracy/perception": 0.5}),
        (1, "q?"),
        (2, {"discriminator/accuracy/perception": 0.5}),
        (2, "q?"),
    ]
    assert heard.ended
    continued = train(tmp_path, Listener, 2, 3)
    assert (continued.step, [step for step, _ in continued.heard]) == (2, [3, 3])


def test_a_run_is_told_without_addresses_and_keeps_its_identity_until_started_over(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-mine")
    recipe = SFTRecipe.model_validate({"trainer": {"report_to": ["wandb"]}})
    manifest = {"name": "tiny", "id": "sft", "stage": "sft", "created": "2026-11-23T10:00:00.000+00:00"}
    manifest |= {"recipe": {"teacher": {"endpoint": "http://me:key@host/v1", "api_key_env": "MINE"}, "seed": 0}}
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)

    def told(**changes):
        (callback,) = tracking.trackers(recipe, Run(tmp_path, manifest | changes))
        return callback.run

    first = told()
    assert (first.project, first.name) == ("prism", "tiny/sft")
    text = json.dumps(first.config)
    assert not any(secret in text for secret in ("host", "MINE", "secret-of-mine"))
    assert told().id == first.id
    assert told(created="2026-11-24T10:00:00.000+00:00").id != first.id


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_loaded(monkeypatch):
    recipe = SFTRecipe.model_validate({"trainer": {"report_to": "trackio"}})
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="trackio is not installed") as caught:
        tracking.check(recipe.trainer)
    assert "pip install trackio" in caught.value.hint


def test_what_is_served_here_is_not_served_by_transformers_again():
    assert tracking.left_to_transformers({"report_to": ["wandb", "mlflow"]}) == {"report_to": ["mlflow"]}
    assert tracking.left_to_transformers({"report_to": "tensorboard", "x": 1}) == {"report_to": "none", "x": 1}
    assert tracking.left_to_transformers({}) == {}


def test_tensorboard_has_scalars_texts_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, TensorBoard, 0, 3)
    train(tmp_path, TensorBoard, 2, 4)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [one.step for one in found.Scalars("discriminator/accuracy/perception")] == [1, 2, 3, 4]
    assert "rollouts/1/1" in found.Tags()["images"]


def test_wandb_works_without_a_network_and_writes_no_key(tmp_path, monkeypatch):
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
    assert b"discriminator/accuracy/perception" in file.read_bytes()
    assert b"tiny/rl" in file.read_bytes()
    assert b"0123456789abcdef0123456789abcdef" not in written
