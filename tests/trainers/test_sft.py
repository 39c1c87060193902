import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from prism_cli.assembly import checks, training
from prism_cli.assembly.data import load_data, streamed_file
from prism_cli.assembly.policy import start_policy
from prism_cli.data.demonstrations import streamed_completions, with_completions
from prism_cli.data.lengths import refuse_over_long, token_lengths
from prism_cli.errors import DataError, PrismError, RecipeError
from prism_cli.recipes.sections import FileData, ImageSection, MixtureData, ResponseSection, TinyModel, WorldData
from prism_cli.recipes.stages import SFTRecipe
from prism_cli.runs.folder import Run
from prism_cli.stages import sft
from prism_cli.trainers.callbacks import Callbacks, GracefulShutdown, MetricsLog, ProgressBar
from prism_cli.trainers.checkpoints import CompleteCheckpoints
from prism_cli.trainers.last_step import LastStep
from prism_cli.trainers.setup import TrainerSetup
from prism_cli.trainers.sft import sft_trainer


@pytest.fixture(scope="module")
def policy():
    size = TinyModel(type="tiny", hidden=32, layers=1, vision_hidden=32, vision_layers=1)
    image, response = ImageSection(min_pixels=48 * 48, max_pixels=48 * 48), ResponseSection(instruction=None)
    return start_policy(SFTRecipe(model=size, image=image, response=response))


@pytest.fixture(scope="module")
def data(policy):
    return load_data(WorldData(type="world", split="train", size=12, seed=0), policy.settings)


def collated(policy, data, folder, texts):
    """What the model is shown of the rows."""
    train = with_completions(data, texts, policy.processor, 10_000)
    options = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False}
    options |= {
        "per_device_train_batch_size": len(data),
        "remove_unused_columns": False,
        "gradient_checkpointing": False,
    }
    trainer = sft_trainer(policy.with_model(copy.deepcopy(policy.model)), TrainerSetup(options, train))
    return next(iter(trainer.get_train_dataloader()))


def test_a_row_is_shown_whole_however_long(policy, data, tmp_path):
    texts = [f"{text} {'a1 ' * 1200}" for text in data["demonstration"]]
    batch = collated(policy, data, tmp_path, texts)
    assert batch["attention_mask"].sum(1).sort().values.tolist() == sorted(token_lengths(data, policy.processor, texts))
    assert batch["attention_mask"].shape[1] > 1200


def test_only_the_response_is_learnt(policy, data, tmp_path):
    batch = collated(policy, data, tmp_path, data["demonstration"])
    tokenizer = policy.processor.tokenizer
    learnt = [
        tokenizer.decode([i for i, label in zip(row, labels, strict=True) if label != -100], skip_special_tokens=True)
        for row, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    ]
    assert sorted(text.split() for text in learnt) == sorted(text.split() for text in data["demonstration"])


def test_an_over_long_row_is_refused_by_its_id(policy, data):
    lengths = token_lengths(data, policy.processor, data["demonstration"])
    with pytest.raises(DataError) as caught:
        refuse_over_long(data, policy.processor, max(lengths) - 1, "max_tokens", data["demonstration"])
    longest = data["id"][lengths.index(max(lengths))]
    assert f"{longest} ({max(lengths)} tokens)" in str(caught.value)
    refuse_over_long(data, policy.processor, max(lengths), "max_tokens", data["demonstration"])


class Ends(TrainerCallback):
    """Ends the training in its first step: as data without a further batch would, or with an error."""

    def __init__(self, error: PrismError | None):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "message"), [(None, "training ended at step 1 of 3"), (PrismError("broken"), "broken")]
)
def test_a_training_that_ends_early_is_an_error_and_closes_its_bar(policy, data, tmp_path, error, message, capsys):
    train = with_completions(data, data["demonstration"], policy.processor, 10_000)
    options = {"output_dir": str(tmp_path / "checkpoints"), "report_to": "none", "use_cpu": True, "bf16": False}
    options |= {"max_steps": 3, "per_device_train_batch_size": 4, "remove_unused_columns": False, "disable_tqdm": True}
    options |= {"gradient_checkpointing": False, "save_strategy": "no"}
    mine = policy.with_model(copy.deepcopy(policy.model))
    run = Run(Path(tmp_path), {"stage": "sft", "status": "running"})
    callbacks = Callbacks(
        GracefulShutdown(),
        CompleteCheckpoints(1),
        ProgressBar("SFT", {}),
        LastStep(),
        MetricsLog(tmp_path / "metrics.jsonl"),
        watchers=(Ends(error),),
    )
    trainer = sft_trainer(mine, TrainerSetup(options, train, callbacks=callbacks.all()))
    with pytest.raises(PrismError, match=message):
        training.train(trainer, callbacks, run, mine)
    (bar,) = capsys.readouterr().err.splitlines()
    assert "SFT: " in bar
    assert not run.model.exists()


# Sources --------------------------------------------------------------------------------------------------------------


class Logs(TrainerCallback):
    """All that was logged."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append(logs)

    def values(self, name):
        return [line[name] for line in self.lines if name in line]


def small_steps(folder, steps, **more):
    options = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    options |= {"max_steps": steps, "per_device_train_batch_size": 4, "remove_unused_columns": False, "seed": 0}
    return {**options, "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", **more}


def test_the_loss_of_each_source_is_logged_and_adds_up(policy, data, tmp_path):
    world = {"type": "world", "split": "train", "count": 8}
    sources = {"one": {**world, "size": 8, "seed": 0}, "two": {**world, "size": 8, "seed": 1, "count": 4}}
    mixed = load_data(MixtureData.model_validate({"type": "mixture", "sources": sources}), policy.settings)
    rows = with_completions(mixed, None, policy.processor, 10_000)
    logs, model = Logs(), copy.deepcopy(policy.model)
    # One step over all rows at a learning rate of nothing, then the same rows as held-out ones.
    options = small_steps(tmp_path, 1, per_device_train_batch_size=12, learning_rate=0.0)
    trainer = sft_trainer(
        policy.with_model(model), TrainerSetup({**options, "per_device_eval_batch_size": 5}, rows, rows, [logs])
    )
    trainer.train()
    trainer.evaluate()
    learnt = {name: [found for found in rows if found["source"] == name] for name in sources}
    tokens = {name: (trainer.data_collator(found)["labels"] != -100).sum().item() for name, found in learnt.items()}
    assert {name: len(found) for name, found in learnt.items()} == {"one": 8, "two": 4}
    by_source = [logs.values(f"sources/{name}/loss")[0] for name in sources]
    whole = sum(loss * tokens[name] for loss, name in zip(by_source, sources, strict=True)) / sum(tokens.values())
    assert logs.values("loss")[0] == pytest.approx(whole, rel=1e-4)
    assert [logs.values(f"eval_{name}_loss")[0] for name in sources] == pytest.approx(by_source, rel=1e-4)
    assert by_source[0] != pytest.approx(by_source[1], rel=1e-4)


def test_the_loss_of_sources_needs_no_float64_of_the_accelerator(policy, data, tmp_path, monkeypatch):
    rows = with_completions(data, None, policy.processor, 10_000)
    named = rows.remove_columns([n for n in ("source",) if n in rows.column_names]).add_column(
        "source", ["a"] * len(rows)
    )
    logs = Logs()
    trainer = sft_trainer(
        policy.with_model(copy.deepcopy(policy.model)),
        TrainerSetup(small_steps(tmp_path, 1), named, callbacks=[logs]),
    )
    trainer._totals[True] += torch.tensor([6.0, 3.0])
    monkeypatch.setattr(type(trainer.accelerator), "device", torch.device("meta"))  # holds no numbers at all
    trainer.log({})
    assert logs.values("sources/a/loss") == [2.0]


def test_rows_of_one_set_are_no_source(policy, data, tmp_path):
    logs = Logs()
    rows = with_completions(data, None, policy.processor, 10_000)
    setup = TrainerSetup(small_steps(tmp_path, 1), rows, callbacks=[logs])
    sft_trainer(policy.with_model(copy.deepcopy(policy.model)), setup).train()
    assert logs.values("loss")
    assert not [name for line in logs.lines for name in line if "source" in name]


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def streamed(data, tmp_path):
    """The rows' demonstrations as a file, fewer than the steps below take."""
    with open(tmp_path / "rows.jsonl", "w") as file:
        for number, found in enumerate(data):
            found["images"][0].save(tmp_path / f"{number}.png")
            fields = {"question": found["prompt"][-1]["content"], "response": found["demonstration"]}
            file.write(json.dumps({"image": f"{number}.png", **fields}) + "\n")
    return FileData(path=str(tmp_path / "rows.jsonl"), stream=True)


def stream_recipe(section, **more):
    return SFTRecipe.model_validate(
        {"data": section, "model": {"type": "tiny"}, "max_steps": 4, "max_tokens": 10_000, **more}
    )


def losses(policy, rows, folder, steps, resume=None, **more):
    logs = Logs()
    options = small_steps(folder, steps, save_strategy="steps", save_steps=3, **more)
    model = copy.deepcopy(policy.model)
    trainer = sft_trainer(policy.with_model(model), TrainerSetup(options, rows, callbacks=[logs]))
    trainer.train(resume_from_checkpoint=resume)
    return logs.values("loss")


def stream(recipe, policy):
    file = streamed_file(recipe.data)
    return streamed_completions(file, policy.instruction, policy.processor, recipe.max_tokens, recipe.seed)


def test_a_stream_trains_over_its_end_and_continues_where_it_was(policy, streamed, tmp_path):
    recipe = stream_recipe(streamed)
    whole = losses(policy, stream(recipe, policy), tmp_path / "whole", 5)
    assert len(whole) == 5  # of 4 rows a step, with 12 in the file
    losses(policy, stream(recipe, policy), tmp_path / "cut", 3, lr_scheduler_type="constant")
    start = losses(policy, stream(recipe, policy), tmp_path / "start", 5, lr_scheduler_type="constant")
    checkpoint = str(tmp_path / "cut" / "checkpoint-3")
    rest = losses(policy, stream(recipe, policy), tmp_path / "cut", 5, checkpoint, lr_scheduler_type="constant")
    assert rest == start[3:]


def test_a_streamed_row_that_is_too_long_is_told_with_its_tokens(policy, streamed):
    with pytest.raises(DataError, match=r"row: \d+ tokens, more than max_tokens = 20"):
        next(iter(stream(stream_recipe(streamed, max_tokens=20), policy)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_steps": None}, "data.stream: how many rows there are is not known"),
        ({"teacher": {"type": "embedded"}}, "data.stream: a teacher is asked about all rows"),
    ],
)
def test_what_a_stream_can_not_do_is_refused_before_anything_is_read(streamed, more, message):
    with pytest.raises(RecipeError, match=message):
        sft.check(stream_recipe(streamed, **more))


def test_only_sft_s_training_rows_are_streamed(streamed):
    for stage, field in (("rl", "data"), ("sft", "eval_data"), ("align", "data")):
        with pytest.raises(RecipeError, match=f"{field}.stream"):
            checks.check_data(streamed, stage, field)
    mixture = {"type": "mixture", "sources": {"a": {**streamed.model_dump(), "weight": 1}}}
    with pytest.raises(RecipeError, match=r"data\.sources\.a\.stream"):
        checks.check_data(MixtureData.model_validate(mixture), "sft")
