"""`prism sft`: supervised fine-tuning on a teacher's demonstrations."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prism_cli import processes
from prism_cli.assembly import checks, tracking
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data, streamed_file
from prism_cli.assembly.out_of_memory import training_run
from prism_cli.assembly.planned_job import sft_job
from prism_cli.assembly.policy import lora_config
from prism_cli.assembly.response import grammar_ahead
from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, resolve_teacher
from prism_cli.data.demonstrations import refuse_malformed, streamed_completions, with_completions
from prism_cli.errors import RecipeError
from prism_cli.progress import progress
from prism_cli.recipes.stages import SFTRecipe
from prism_cli.runs.folder import Run
from prism_cli.teacher.teacher import RecordedTeacher

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from prism_cli.models import Policy
    from prism_cli.teacher.answers import TeacherAnswers

SHOWN = {"loss": "loss", "mean_token_accuracy": "token accuracy", "eval_loss": "held-out loss"}


def check(recipe: SFTRecipe, pending: bool = False) -> Plan:
    """The plan of the stage; finds what is wrong without a model.

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
        plan += checks.check_teacher(recipe.teacher, "sft", grammar_ahead(recipe))
    checks.check_training(recipe)
    tracking.check(recipe.trainer)
    _check_stream(recipe)
    length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs} epochs"
    rows = recipe.batch_size * recipe.gradient_accumulation
    return [*plan, ("training", f"{length} of {rows} rows a device, learning rate {recipe.optimizer.learning_rate}")]


def _check_stream(recipe: SFTRecipe) -> None:
    """Refuses a stream where all rows must be known first."""
    if streamed_file(recipe.data) is None:
        return
    if not recipe.max_steps:
        raise RecipeError("data.stream: how many rows there are is not known, so no epoch either", "give --max-steps N")
    if recipe.teacher is not None:
        raise RecipeError(
            "data.stream: a teacher is asked about all rows before the training", "leave data.stream or the teacher out"
        )


def run(recipe: SFTRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    make_job = partial(sft_job, recipe)
    with training_run("sft", recipe, make_job, fresh, command) as run:
        if run.finished:
            return run.folder
        from prism_cli.assembly import training
        from prism_cli.trainers.setup import TrainerSetup
        from prism_cli.trainers.sft import sft_trainer

        policy = training.start(recipe)
        train, held_out = _demonstrations(recipe, policy, run)
        batch = {
            "per_device_train_batch_size": recipe.batch_size,
            "per_device_eval_batch_size": recipe.batch_size,
            "gradient_accumulation_steps": recipe.gradient_accumulation,
        }
        settings = training.training_settings(recipe, run)
        training.seed(settings)
        callbacks = training.callbacks(settings, policy, training.Shown("SFT", SHOWN), make_job)
        setup = TrainerSetup(settings.arguments(batch), train, held_out, callbacks.all(), lora_config(recipe))
        training.train(sft_trainer(policy, setup), callbacks, run, policy)
    return run.folder


def _demonstrations(
    recipe: SFTRecipe, policy: "Policy", run: Run
) -> tuple["Dataset | IterableDataset", "Dataset | None"]:
    """Training and held-out rows as prompt, completion, images and source; over-long ones are refused."""
    shape = (policy.processor, recipe.max_tokens)
    if (file := streamed_file(recipe.data)) is not None:
        with processes.main_first():
            held_out = load_data(recipe.eval_data, policy.settings, "sft") if recipe.eval_data is not None else None
        stream = streamed_completions(file, policy.instruction, *shape, recipe.seed)
        return stream, held_out and with_completions(held_out, None, *shape)
    teacher = None if recipe.teacher is None else resolve_teacher(recipe.teacher)
    needs, by_column = None if teacher else "sft", isinstance(teacher, RecordedTeacher)
    sections = [section for section in (recipe.data, recipe.eval_data) if section is not None]
    with processes.main_first():
        sources = [load_data(section, policy.settings, needs, by_column) for section in sections]
    texts = [None for _ in sources]
    if teacher is not None:
        questions = TeacherQuestions(tuple(sources), policy.settings, recipe.data)
        with open_teacher(teacher, run, questions) as answers:
            answered = [_answered(data, answers) for data in sources]
        sources, texts = [data for data, _ in answered], [texts for _, texts in answered]
        refuse_malformed(texts[0], sources[0]["id"], policy.grammar)
    prepared = [with_completions(*pair, *shape) for pair in zip(sources, texts, strict=True)]
    return prepared[0], prepared[1] if len(prepared) > 1 else None


def _answered(data: "Dataset", answers: "TeacherAnswers") -> tuple["Dataset", list[str]]:
    """The rows the teacher has an answer to, and its answers; `open_teacher` prints how many it failed on."""
    with progress("asking the teacher", len(data)) as on_progress:
        texts = answers.answers([{"id": id} for id in data["id"]], on_progress=on_progress)
    answered = [index for index, text in enumerate(texts) if text is not None]
    rows = data.select(answered) if len(answered) < len(data) else data
    return rows, [text for text in texts if text is not None]
