"""Rollouts kept to be looked at: which, how much of them, and the same ones in a run that was stopped and continued."""

import base64
import copy
import io
import json
import math

import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from prism_cli.data.rows import dataset, row
from prism_cli.models import Policy
from prism_cli.responses import Grammar, Part
from prism_cli.trainers.algorithms import Resampling
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.trainers.checkpoints import CompleteCheckpoints
from prism_cli.trainers.dapo import DAPOTrainer
from prism_cli.trainers.grpo import GRPOTrainer
from prism_cli.trainers.rollout_log import MOST_CHARACTERS, RolloutLog, Rollouts
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.verified_reward import VerifiedReward
from tests.tiny import tiny_policy

GROUP = 4


def lines(folder):
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def asked(id, picture=None):
    return {
        "id": id,
        "source": "",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"what is {id} ?"}],
        "answers": ["5", "five"],
        "images": [picture] if picture else [],
    }


def keep(log, step, ids="aab", text="hello", teacher=None, **values):
    rows, count = [asked(id) for id in ids], len(ids)
    log.keep(
        step,
        Rollouts(
            rows, [text] * count, [None] * count, values or {"accuracy": [1.0] * count}, [3] * count, teacher or {}
        ),
    )


def begin(log, folder, step=0, max_steps=100):
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    log.on_train_begin(arguments, TrainerState(global_step=step, max_steps=max_steps), TrainerControl())


# The log --------------------------------------------------------------------------------------------------------------


def due(log, first, last):
    found = []
    for step in range(first, last + 1):
        if log.is_due(step):
            found.append(step)
            keep(log, step)
    return found


def test_the_first_step_and_every_nth_are_kept(tmp_path):
    log = RolloutLog(tmp_path, 25)
    begin(log, tmp_path)
    assert due(log, 1, 100) == [1, 25, 50, 75, 100]
    assert not log.is_due(100), "once a step"
    assert not RolloutLog(tmp_path, None).is_due(1)


def test_where_only_some_steps_roll_out_the_next_one_that_does_is_kept(tmp_path):
    log = RolloutLog(tmp_path, 5)
    begin(log, tmp_path)
    kept = [step for step in (1, 4, 7, 10, 13, 16) if due(log, step, step)]
    assert kept == [1, 7, 10, 16]


def test_a_long_run_keeps_no_more_than_sixty_steps_after_its_first(tmp_path):
    log = RolloutLog(tmp_path, 1)
    begin(log, tmp_path, max_steps=6000)
    assert due(log, 1, 6000) == [1, *range(100, 6001, 100)]


@pytest.mark.parametrize("at", [9, 10, 14])
def test_a_continued_run_keeps_what_one_that_was_never_stopped_does(tmp_path, at):
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    for folder in (whole, stopped):
        folder.mkdir()
        log = RolloutLog(folder, 5)
        begin(log, folder)
        due(log, 1, 20)
    with open(stopped / "rollouts.jsonl", "a") as file:
        file.write('{"step": 25, "prom')  # killed while it was written
    log = RolloutLog(stopped, 5)
    begin(log, stopped, step=at)
    assert [line["step"] for line in lines(stopped)] == [step for step in (1, 5, 10) if step <= at]
    due(log, at + 1, 20)
    assert (stopped / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()


def test_two_prompts_with_four_rollouts_each_are_kept_of_a_batch(tmp_path):
    keep(RolloutLog(tmp_path, 1), 1, "aaaaaabbc", accuracy=[1.0, math.nan, *[0.0] * 7])
    (line,) = lines(tmp_path)
    assert [(prompt["id"], len(prompt["rollouts"])) for prompt in line["prompts"]] == [("a", 4), ("b", 2)]
    first = line["prompts"][0]
    assert (first["question"], first["answers"], first["teacher"]) == ("what is a ?", ["5", "five"], None)
    assert [rollout["rewards"]["accuracy"] for rollout in first["rollouts"]] == [1.0, None, 0.0, 0.0]


def test_texts_and_pictures_are_bounded(tmp_path):
    log = RolloutLog(tmp_path, 1)
    noise = Image.effect_noise((3000, 1000), 90)
    text = "<caption>" + "x" * 100_000 + "</answer>"
    log.keep(1, Rollouts([asked("a", noise), asked("b", noise)], [text] * 2, [None] * 2, {}, [9] * 2))
    (line,) = lines(tmp_path)
    prompt = line["prompts"][0]
    kept = prompt["rollouts"][0]["text"]
    assert len(kept) < MOST_CHARACTERS + 50
    assert kept.startswith("<caption>")
    assert kept.endswith("</answer>")
    assert f"{100_018 - MOST_CHARACTERS} characters left out" in kept
    head, _, body = prompt["images"][0].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(body)))
    assert (head, picture.size) == ("data:image/jpeg;base64", (256, 85))
    assert len(body) < 40_000


def test_a_small_drawing_is_kept_pixel_by_pixel(tmp_path):
    drawing = Image.effect_noise((48, 48), 90).convert("RGB")
    log = RolloutLog(tmp_path, 1)
    log.keep(1, Rollouts([asked("a", drawing)], ["hello"], [None], {}, [1]))
    head, _, body = lines(tmp_path)[0]["prompts"][0]["images"][0].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).tobytes() == drawing.tobytes()


def test_a_teachers_answers_stand_beside_the_scores(tmp_path):
    log = RolloutLog(tmp_path, 1)
    keep(log, 1, "aab", teacher={"a": "of a", "b": None}, perception=[0.12345, -1.0, math.nan])
    first, second = lines(tmp_path)[0]["prompts"]
    assert (first["teacher"], second["teacher"]) == ("of a", None)
    assert [one["rewards"] for one in first["rollouts"]] == [{"perception": 0.1235}, {"perception": -1.0}]
    assert second["rollouts"][0]["rewards"] == {"perception": None}


# In training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    return dataset(
        row(id, f"what is at {id} ?", [Image.new("RGB", (48, 48), color)], answers=[color])
        for id, color in (("a1", "red"), ("a2", "green"), ("b1", "blue"), ("b2", "yellow"))
    )


def rules():
    """Half of a group is right, but for prompts of row a: all of it is; form is not judged."""

    def accuracy(response, row, length):
        accuracy.calls += 1
        return 1.0 if row["id"].startswith("a") else float(accuracy.calls % 2)

    accuracy.calls = 0
    return VerifiedReward(
        {"accuracy": accuracy, "custom": lambda response, row, length: None}, {"accuracy": 1.0, "custom": 1.0}
    )


def trainer(rows, folder, resampling=None, **more):
    model, processor = tiny_policy()
    policy = Policy(copy.deepcopy(model), processor, Grammar({"all": Part((), 1.0)}, None), None)
    batch = RolloutBatch(2, GROUP, 2 * GROUP, 1, 8, temperature=1.0).arguments()
    common = {"output_dir": str(folder / "checkpoints"), "report_to": "none", "use_cpu": True, "bf16": False}
    common |= {"gradient_checkpointing": False, "remove_unused_columns": False, "disable_tqdm": True, "save_steps": 2}
    common |= {"num_generations_eval": 2, "per_device_eval_batch_size": 2}
    setup = TrainerSetup(
        {**batch, **common, **more}, rows, rows, [CompleteCheckpoints(2)], rollout_log=RolloutLog(folder, 2)
    )
    return DAPOTrainer(policy, rules(), setup, resampling) if resampling else GRPOTrainer(policy, rules(), setup)


def test_training_keeps_rollouts_and_goes_on_keeping_them_after_a_checkpoint(rows, tmp_path):
    whole = trainer(rows, tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, learning_rate=1e-3)
    whole.train()
    first = lines(tmp_path)
    assert [line["step"] for line in first] == [1, 2, 4], "rollouts of an evaluation are not among them"
    for line in first:
        assert [len(prompt["rollouts"]) for prompt in line["prompts"]] == [GROUP, GROUP]
        for prompt in line["prompts"]:
            assert prompt["question"] == f"what is at {prompt['id']} ?"
            assert len(prompt["images"]) == 1
            for rollout in prompt["rollouts"]:
                assert 1 <= rollout["length"] <= 8
                assert rollout["rewards"]["accuracy"] in (0.0, 1.0)
                assert rollout["rewards"]["custom"] is None, "unscored is not 0"
                assert (rollout["problem"] is None) == bool(rollout["text"])
    again = trainer(rows, tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, learning_rate=1e-3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints/checkpoint-2"))
    second = lines(tmp_path)
    assert [line["step"] for line in second] == [1, 2, 4]
    texts = [[[one["text"] for one in prompt["rollouts"]] for prompt in run[2]["prompts"]] for run in (first, second)]
    assert texts[0] == texts[1]


def test_of_dynamic_sampling_only_what_is_trained_on_is_kept(rows, tmp_path):
    trainer(rows, tmp_path, Resampling(2, 3), max_steps=1).train()
    (line,) = lines(tmp_path)
    assert {prompt["id"] for prompt in line["prompts"]} == {"b1", "b2"}
    for prompt in line["prompts"]:
        assert sorted(one["rewards"]["accuracy"] for one in prompt["rollouts"]) == [0, 0, 1, 1]


# In the stages --------------------------------------------------------------------------------------------------------

SMALL = "data.size=16 eval_data=null prompts_per_step=2 rollouts=4 micro_batch=8 checkpoint.evaluate_every=null"


def test_rl_keeps_rollouts_with_rewards_and_warns_while_it_trains(prism, trained, tmp_path):
    words = [*SMALL.split(), "max_steps=5", "max_response_tokens=8", "rollouts_every=3", "rewards.max_wrong=1"]
    done = prism("rl", "tiny", "--from", str(trained), *words, "--output", "rl", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert [line["step"] for line in lines(tmp_path / "rl")] == [1, 3]
    (rollout, *_) = lines(tmp_path / "rl")[0]["prompts"][0]["rollouts"]
    assert rollout["rewards"] == {"accuracy": 0.0, "format": 0.0}
    assert rollout["problem"]
    # Eight tokens hold no answer.
    warnings = [json.loads(line) for line in (tmp_path / "rl/warnings.jsonl").read_text().splitlines()]
    assert {(one["step"], one["kind"]) for one in warnings} == {(5, "cut_responses"), (5, "format_collapse")}
    page = (tmp_path / "rl/report.html").read_text()
    assert "Rollouts" in page
    assert "100% of the responses are cut at max_response_tokens" in page


def test_align_keeps_rollouts_with_a_score_a_part_and_the_teachers_answer(prism, trained, tmp_path):
    warm_up = ["discriminator.warmup.pairs=8", "discriminator.warmup.held_out=4"]
    words = [*SMALL.split(), *warm_up, "max_steps=1", "max_response_tokens=56"]
    done = prism("align", "tiny", "--from", str(trained), *words, "--output", "align", cwd=tmp_path)
    assert done.code == 0, done.stderr
    (line,) = lines(tmp_path / "align")
    for prompt in line["prompts"]:
        assert prompt["teacher"].endswith(f"<answer> {prompt['answers'][0]} </answer>")
        for rollout in prompt["rollouts"]:
            assert list(rollout["rewards"]) == ["perception", "reasoning"]
            assert (None in rollout["rewards"].values()) == (rollout["problem"] is not None)
