"""What can be found wrong in a resolved recipe without loading a model, and the lines of its plan."""

from pathlib import Path

from prism_cli.errors import DataError, RecipeError
from prism_cli.recipes.sections import Data, TinyModel, WorldData
from prism_cli.recipes.stages import RolloutStage, Stage, TrainingStage
from prism_cli.recipes.teachers import DatasetTeacher, EmbeddedTeacher, Teacher
from prism_cli.runs import resolve_model
from prism_cli.trainers.arguments import RolloutBatch

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

Plan = list[tuple[str, str]]


def check_start(recipe: Stage, stage: str, pending: bool) -> Plan:
    """The plan's lines about where a stage starts.

    Args:
        recipe: The stage's recipe.
        stage: Its command.
        pending: The run in `from` is an earlier step of the same pipeline, so it need not exist yet.

    Raises:
        RecipeError: neither `model` nor `from`.
        CheckpointError: the run in `from` has no model.
    """
    if recipe.from_ is not None:
        return [("starts from", recipe.from_ if pending else str(resolve_model(recipe.from_)[0]))]
    if recipe.model is None:
        raise RecipeError(
            f"`prism {stage}` has no model to start from",
            "give --from RUN (a finished run) or --model (a folder or hub id)",
        )
    if isinstance(recipe.model, TinyModel):
        return [("starts from", "a randomly initialised tiny Qwen3-VL")]
    if recipe.model.path.startswith((".", "/")) and not Path(recipe.model.path).is_dir():
        raise RecipeError(f"model.path: no folder {recipe.model.path}", "give a model folder or a hub id")
    return [("starts from", recipe.model.path)]


def check_data(section: Data | None, stage: str, field: str = "data") -> Plan:
    """The plan's line about rows.

    Raises:
        RecipeError: no data named.
        DataError: the file is missing.
    """
    if section is None:
        raise RecipeError(
            f"`prism {stage}` has no {field}", f"give --{field.replace('_', '-')} FILE or `{field}:` in the recipe"
        )
    if isinstance(section, WorldData):
        return [(field, f"{section.size} rows of world {section.world} ({section.split}, seed {section.seed})")]
    path = Path(section.path)
    local = section.path.startswith((".", "/")) or path.suffix in DATA_SUFFIXES
    if path.is_dir() or (local and not path.is_file()):
        raise DataError(f"{field}: no file {section.path}", "give a data file: data.path or --data")
    return [(field, section.path + (f", first {section.limit} rows" if section.limit else ""))]


def check_teacher(section: Teacher, stage: str) -> Plan:
    """The plan's line about the teacher.

    Raises:
        RecipeError: an endpoint or model name is missing.
    """
    if isinstance(section, DatasetTeacher):
        return [("teacher", "answers from the data's teacher_response column")]
    if isinstance(section, EmbeddedTeacher):
        return [("teacher", f"world {section.world} ({section.variant}), served on 127.0.0.1")]
    if section.endpoint is None:
        raise RecipeError(
            f"`prism {stage}` has no teacher",
            "give --teacher-endpoint URL, or `teacher: {type: dataset}` when the data holds teacher answers",
        )
    return [("teacher", f"{section.model or 'the model'} at {section.endpoint}, key from ${section.api_key_env}")]


def check_training(recipe: TrainingStage) -> None:
    """Finds combinations that can't train.

    Raises:
        RecipeError: a best checkpoint without an evaluation at every checkpoint, or the reverse.
    """
    checkpoint = recipe.checkpoint
    if checkpoint.evaluate_every is not None and recipe.eval_data is None:
        raise RecipeError(
            "checkpoint.evaluate_every is set but there is no eval_data", "name held-out rows in eval_data"
        )
    if checkpoint.best_by is not None and checkpoint.evaluate_every != checkpoint.every:
        raise RecipeError(
            "checkpoint.best_by compares checkpoints, so each must be evaluated",
            "set checkpoint.evaluate_every to the value of checkpoint.every",
        )
    if isinstance(recipe, RolloutStage):
        rollout_batch(recipe)


def rollout_batch(recipe: RolloutStage, processes: int = 1) -> RolloutBatch:
    """How a step's rollouts are cut up.

    Raises:
        RecipeError: they don't divide.
    """
    batch = RolloutBatch(
        recipe.prompts_per_step,
        recipe.rollouts,
        recipe.micro_batch,
        processes,
        recipe.max_response_tokens,
        recipe.temperature,
    )
    try:
        batch.arguments()
    except ValueError as error:
        raise RecipeError(str(error), "choose a micro_batch that divides prompts_per_step × rollouts") from None
    return batch
