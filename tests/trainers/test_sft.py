import copy
from pathlib import Path

import pytest
from rich.console import Console
from transformers import TrainerCallback

from prism_cli.data.lengths import refuse_over_long, token_lengths
from prism_cli.errors import DataError, PrismError
from prism_cli.models import Policy
from prism_cli.recipes.sections import ResponseSection, TinyModel, WorldData
from prism_cli.runs import Run
from prism_cli.stages import build, training
from prism_cli.stages.grammar import grammar_of
from prism_cli.stages.sft import _completions
from prism_cli.trainers.callbacks import RichProgress
from prism_cli.trainers.sft import sft_trainer


@pytest.fixture(scope="module")
def policy():
    grammar = grammar_of(ResponseSection())
    size = TinyModel(type="tiny", hidden=32, layers=1, vision_hidden=32, vision_layers=1)
    model, processor = build._tiny(size, grammar, None, 48 * 48, 0)
    return Policy(model, processor, grammar, None)


@pytest.fixture(scope="module")
def data(policy):
    return build.load_data(WorldData(type="world", split="train", size=12, seed=0), policy)


def collated(policy, data, folder, texts):
    """What the model is shown of the rows."""
    train = _completions(data, texts, policy, 10_000)
    options = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False}
    options |= {
        "per_device_train_batch_size": len(data),
        "remove_unused_columns": False,
        "gradient_checkpointing": False,
    }
    trainer = sft_trainer(copy.deepcopy(policy.model), policy.processor, train, None, options, [])
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
def test_a_training_that_ends_early_is_an_error_and_leaves_no_live_display(policy, data, tmp_path, error, message):
    train = _completions(data, data["demonstration"], policy, 10_000)
    options = {"output_dir": str(tmp_path / "checkpoints"), "report_to": "none", "use_cpu": True, "bf16": False}
    options |= {"max_steps": 3, "per_device_train_batch_size": 4, "remove_unused_columns": False, "disable_tqdm": True}
    options |= {"gradient_checkpointing": False, "save_strategy": "no"}
    progress = RichProgress("SFT", {}, Console(record=True, force_terminal=True, file=(tmp_path / "shown").open("w")))
    mine = policy.with_model(copy.deepcopy(policy.model))
    trainer = sft_trainer(mine.model, mine.processor, train, None, options, [progress, Ends(error)])
    run = Run(Path(tmp_path), {"stage": "sft", "status": "running"})
    with pytest.raises(PrismError, match=message):
        training.train(trainer, run, mine)
    assert not progress.progress.live.is_started
    assert not run.model.exists()
