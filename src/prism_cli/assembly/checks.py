"""Checks of a resolved recipe that load no model, and the lines of its plan."""

from pathlib import Path

from prism_cli.assembly.data import parts, resolve_data
from prism_cli.assembly.endpoint import in_section
from prism_cli.assembly.policy import PolicyStart, resolve_start
from prism_cli.assembly.teacher import prompting_of, resolve_teacher
from prism_cli.errors import DataError, RecipeError
from prism_cli.model_configs import model_config
from prism_cli.model_configs.families import family
from prism_cli.recipes.sections import Data
from prism_cli.recipes.stages import AlignRecipe, RolloutStage, Stage, TrainingStage, WarmupRecipe
from prism_cli.recipes.teachers import Teacher
from prism_cli.responses import Grammar, ResponseSettings
from prism_cli.runs.references import resolve_model
from prism_cli.teacher.prompting import PERCEPTION
from prism_cli.trainers.arguments import RolloutBatch

Plan = list[tuple[str, str]]


def check_start(recipe: Stage, stage: str, pending: bool) -> Plan:
    """The plan's lines about where a stage starts.

    Args:
        recipe: The stage's recipe.
        stage: Its command.
        pending: The run in `from` is an earlier step of the same pipeline, so it need not exist yet.

    Raises:
        RecipeError: neither `model` nor `from`, or a family of models that the stage can't use.
        CheckpointError: the run in `from` has no model.
    """
    start = resolve_start(recipe)
    if isinstance(recipe, AlignRecipe | WarmupRecipe):
        _check_discriminator(recipe, start, pending)
    if start.run is not None:
        return [("starts from", start.run if pending else str(resolve_model(start.run)[0]))]
    if start.model is None:
        raise RecipeError(
            f"`prism {stage}` has no model to start from",
            "give --from RUN (a finished run) or --model (a folder or hub id)",
        )
    if start.path is None:
        return [("starts from", "a randomly initialised tiny Qwen3-VL")]
    if start.path.startswith((".", "/")) and not Path(start.path).is_dir():
        raise RecipeError(f"model.path: no folder {start.path}", "give a model folder or a hub id")
    return [("starts from", start.path)]


def _check_discriminator(recipe: AlignRecipe | WarmupRecipe, start: PolicyStart, pending: bool) -> None:
    """Refuses a start that no discriminator reads or can be made from; one on the hub, without a config here, when it
    loads."""
    section = recipe.discriminator
    policy = None if pending and start.run is not None else start.path
    model_type = _model_type(policy)
    if model_type is not None and family(model_type).discriminator is None:
        raise RecipeError(
            f"{policy} is a {model_type} model, and no discriminator reads its tokens: a discriminator is made from a "
            "dense Qwen3-VL",
            "align a Qwen3-VL; `prism sft` and `prism rl` train this one (docs/models.md, Families)",
        )
    if section.path is not None:
        return
    base = section.base or policy
    model_type = _model_type(base)
    if model_type is not None and not family(model_type).dense_base:
        raise RecipeError(
            f"no discriminator can be made from {base}, a {model_type} model",
            "name a dense Qwen3-VL in discriminator.base, such as Qwen/Qwen3-VL-2B-Instruct",
        )
    if section.base is None and start.four_bits:
        raise RecipeError(
            "lora.bits: the discriminator would be made from the policy's weights in 4 bits",
            "name a dense Qwen3-VL in discriminator.base, or a discriminator in discriminator.path",
        )


def _model_type(model: str | None) -> str | None:
    """A model's `model_type`, where its config is here."""
    return (model_config(model) or {}).get("model_type") if model is not None else None


def check_data(section: Data | None, stage: str, field: str = "data") -> Plan:
    """The plan's lines about rows.

    Raises:
        RecipeError: no data named, or streamed where all rows must be known.
        DataError: the file is missing, or its first row is in no known format.
    """
    if section is None:
        raise RecipeError(
            f"`prism {stage}` has no {field}", f"give --{field.replace('_', '-')} FILE or `{field}:` in the recipe"
        )
    lines = []
    for key, share, source in parts(resolve_data(section), field):
        if source.streamed and (stage, key) != ("sft", "data"):
            raise RecipeError(
                f"{key}.stream: `prism {stage}` must know all rows of {key}",
                "only `data` of `prism sft` can be streamed, and no mixture",
            )
        try:
            line = source.describe()
        except DataError as error:
            raise DataError(f"{key}: {error}", error.hint) from None
        lines.append((field, line if share is None else f"{share} {line}"))
    return lines


def check_teacher(section: Teacher, stage: str, grammar: Grammar | None = None) -> Plan:
    """The plan's lines about the teacher.

    Args:
        section: Which teacher.
        stage: Who asks.
        grammar: The policy's parts, or None where the run it starts from is not there yet.

    Raises:
        RecipeError: an endpoint is missing, an example is not in the teacher's form, or a stage that needs complete
            responses is to be taught by one who can't write them.
    """
    teacher = resolve_teacher(section)
    if stage == "drift":  # it asks nobody where kept answers will do
        with in_section("teacher", RecipeError):
            teacher = teacher.by_its_store()
    plan = [("teacher", teacher.description)]
    taught = grammar if grammar is None else prompting_of(teacher, ResponseSettings(grammar, None)).grammar
    if not teacher.can_answer:
        raise RecipeError(
            f"`prism {stage}` has no teacher",
            "give --teacher-endpoint URL, or `teacher: {type: dataset}` when the data holds teacher answers",
        )
    if taught is None or taught == grammar:
        return plan
    if stage not in ("align", "drift"):
        raise RecipeError(
            f"`prism {stage}` needs whole responses, and a text-only teacher can't write {PERCEPTION}",
            "take a teacher that sees (teacher.modality=image); `prism align` can learn the other parts from this one",
        )
    return [*plan, ("teacher teaches", f"{', '.join(taught.parts)}, from the question and the row's caption")]


def check_training(recipe: TrainingStage) -> None:
    """Finds combinations that can't train.

    Raises:
        RecipeError: a best checkpoint without an evaluation at every checkpoint, or the reverse; weights in 4 bits that
            are to be sharded.
    """
    _check_shards(recipe)
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


def _check_shards(recipe: TrainingStage) -> None:
    if recipe.launch.zero == 3 and recipe.lora is not None and recipe.lora.bits is not None:
        raise RecipeError(
            "launch.zero 3 shards weights, and lora.bits holds them in 4 bits, which can't be sharded",
            "set launch.zero=2: frozen weights in 4 bits are small enough for each GPU; or leave lora.bits out",
        )


def rollout_batch(recipe: RolloutStage) -> RolloutBatch:
    """The split of a step's rollouts into micro-batches.

    Raises:
        RecipeError: they don't divide.
    """
    batch = RolloutBatch(
        recipe.prompts_per_step,
        recipe.rollouts,
        recipe.micro_batch,
        recipe.launch.world_size,
        recipe.max_response_tokens,
        recipe.temperature,
    )
    try:
        batch.arguments()
    except ValueError as error:
        raise RecipeError(
            str(error), "change micro_batch, launch.processes, prompts_per_step or rollouts so that they divide"
        ) from None
    return batch
