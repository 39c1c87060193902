"""`prism sft`: supervised fine-tuning on a teacher's demonstrations."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli.errors import DataError
from prism_cli.recipes.stages import SFTRecipe
from prism_cli.runs import Run
from prism_cli.stages import build, checks
from prism_cli.stages.checks import Plan
from prism_cli.stages.teaching import teaching

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy

SHOWN = {"loss": "loss", "mean_token_accuracy": "token accuracy", "eval_loss": "held-out loss"}


def check(recipe: SFTRecipe, pending: bool = False) -> Plan:
    """What would be done; finds what is wrong without a model.

    Args:
        recipe: The resolved recipe.
        pending: The run it starts from is an earlier step of the same pipeline and need not exist yet.

    Raises:
        PrismError: see the `check_…` functions.
    """
    plan = [*checks.check_start(recipe, "sft", pending), *checks.check_data(recipe.data, "sft")]
    if recipe.eval_data is not None:
        plan += checks.check_data(recipe.eval_data, "sft", "eval_data")
    if recipe.teacher is not None:
        plan += checks.check_teacher(recipe.teacher, "sft")
    checks.check_training(recipe)
    length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs} epochs"
    rows = recipe.batch_size * recipe.gradient_accumulation
    return [*plan, ("training", f"{length} of {rows} rows a device, learning rate {recipe.optimizer.learning_rate}")]


def run(recipe: SFTRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    run = build.open_stage(recipe, "sft", build.lineage(recipe), fresh, command)
    if build.already_done(run):
        return run.folder
    from prism_cli.stages import training
    from prism_cli.trainers.sft import sft_trainer

    with run.working():
        policy = build.start_policy(recipe)
        train, held_out = _demonstrations(recipe, policy, run)
        batch = {
            "per_device_train_batch_size": recipe.batch_size,
            "per_device_eval_batch_size": recipe.batch_size,
            "gradient_accumulation_steps": recipe.gradient_accumulation,
        }
        training.seed(recipe)
        trainer = sft_trainer(
            policy.model,
            policy.processor,
            train,
            held_out,
            training.arguments(recipe, run, batch),
            training.callbacks(recipe, run, policy, "SFT", SHOWN),
            build.lora_config(recipe),
        )
        training.train(trainer, run, policy)
    return run.folder


def _demonstrations(recipe: SFTRecipe, policy: "Policy", run: Run) -> tuple["Dataset", "Dataset | None"]:
    """Training and held-out rows as prompt, completion and images; over-long ones are refused."""
    sources = [build.load_data(section, policy) for section in (recipe.data, recipe.eval_data) if section is not None]
    texts = [data["demonstration"] for data in sources]
    if recipe.teacher is not None:
        with teaching(recipe.teacher, policy.grammar, run, *sources) as desk:
            texts = [desk.answers([{"id": id} for id in data["id"]]) for data in sources]
        _refuse_malformed(texts[0], sources[0]["id"], policy)
    prepared = [_completions(*pair, policy, recipe.max_tokens) for pair in zip(sources, texts, strict=True)]
    return prepared[0], prepared[1] if len(prepared) > 1 else None


def _refuse_malformed(texts: Sequence[str], ids: Sequence[str], policy: "Policy") -> None:
    bad = [(id, policy.grammar.parse(text)) for id, text in zip(ids, texts, strict=True)]
    bad = [(id, response.problem) for id, response in bad if not response.well_formed]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(texts)} teacher answers are malformed, the first is {bad[0][0]}: {bad[0][1]}",
            "a policy learns what it is shown: drop these rows, or ask a teacher that keeps the form",
        )


def _completions(data: "Dataset", texts: Sequence[str | None], policy: "Policy", max_tokens: int) -> "Dataset":
    if missing := [id for id, text in zip(data["id"], texts, strict=True) if not text]:
        raise DataError(
            f"{len(missing)} rows have no demonstration, the first is {missing[0]}",
            "give `messages`, `completion` or `response` in each row, or a `teacher:` to write them",
        )
    from prism_cli.data.lengths import refuse_over_long

    refuse_over_long(data, policy.processor, max_tokens, "max_tokens", texts)
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    kept = data.select_columns(["prompt", "images"])
    return kept.add_column("completion", completions, feature=data.features["prompt"])
