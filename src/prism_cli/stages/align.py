"""`prism align`: black-box on-policy distillation, the stage between SFT and RL."""

from collections.abc import Sequence
from pathlib import Path

from rich import get_console

from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.recipes.sections import DatasetTeacher
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.stages import build, checks
from prism_cli.stages.checks import Plan
from prism_cli.stages.teaching import teaching

DISCRIMINATOR = "discriminator"


def check(recipe: AlignRecipe, pending: bool = False) -> Plan:
    """What would be done; finds what is wrong without a model.

    Args:
        recipe: The resolved recipe.
        pending: The run it starts from is an earlier step of the same pipeline and need not exist yet.

    Raises:
        PrismError: see the `check_…` functions.
    """
    plan = [*checks.check_start(recipe, "align", pending), *checks.check_data(recipe.data, "align")]
    if recipe.eval_data is not None:
        plan += checks.check_data(recipe.eval_data, "align", "eval_data")
    plan += checks.check_teacher(recipe.teacher, "align")
    checks.check_training(recipe)
    path = recipe.discriminator.path
    if path is not None and not (Path(path) / "discriminator.json").is_file():
        raise CheckpointError(f"no discriminator in {path}", "leave out discriminator.path")
    warm = recipe.discriminator.path or f"warmed up on {recipe.discriminator.warmup.pairs} pairs"
    rollouts = f"{recipe.prompts_per_step} prompts × {recipe.rollouts} rollouts a step"
    length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs} epochs"
    return [*plan, ("discriminator", f"{recipe.discriminator.type}, {warm}"), ("training", f"{length}, {rollouts}")]


def run(recipe: AlignRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    run = build.open_stage(recipe, "align", build.lineage(recipe), fresh, command)
    if build.already_done(run):
        return run.folder
    from prism_cli.data.lengths import refuse_mixed, refuse_over_long
    from prism_cli.stages.showcase import write_showcase
    from prism_cli.stages.warmup import warm_discriminator

    with run.working():
        policy = build.start_policy(recipe)
        rows = build.load_data(recipe.data, policy)
        held_out = build.load_data(recipe.eval_data, policy) if recipe.eval_data else None
        refuse_mixed(rows)
        refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
        _check_column(recipe, rows)
        with teaching(recipe.teacher, policy.grammar, run, *filter(None, (rows, held_out))) as desk:
            judge = warm_discriminator(recipe, policy, rows, desk, run.folder / "warmup")
            trainer, learner = _trainer(recipe, policy, judge, desk, rows, held_out, run)
            _train(trainer, learner, run, policy)
            learner.discriminator.save_pretrained(run.folder / DISCRIMINATOR)
            write_showcase(recipe, run, policy, learner.discriminator, held_out or rows, desk)
    get_console().print(f"[dim]aligned policy in {run.model}[/dim]")
    return run.folder


def _trainer(recipe: AlignRecipe, policy, judge, desk, rows, held_out, run):
    from prism_cli.models import device
    from prism_cli.stages import training
    from prism_cli.stages.warmup import learner_for
    from prism_cli.trainers.on_policy_distill import AdvantageRule, OnPolicyDistillTrainer

    training.prepare(recipe, len(rows), recipe.prompts_per_step)
    learner = learner_for(recipe.discriminator, judge.to(device()))
    # The method's policy loss: clipped ratio, mean over the batch's tokens (TRL calls it dapo), dual clip.
    loss = {
        "loss_type": "dapo",
        "epsilon": recipe.clip,
        "delta": recipe.dual_clip,
        "beta": recipe.kl,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 2 * recipe.micro_batch,
    }
    shown = {f"discriminator/accuracy/{part}": f"judge {part}" for part in policy.grammar.parts}
    shown |= {"responses/malformed_fraction": "malformed", "completions/mean_length": "length"}
    savers = [lambda folder: learner.save(folder / DISCRIMINATOR)]
    trainer = OnPolicyDistillTrainer(
        policy,
        learner,
        desk.prefetch,
        desk.answers,
        AdvantageRule(**recipe.advantage.model_dump()),
        training.arguments(recipe, run, {**checks.rollout_batch(recipe).arguments(), **loss}),
        rows,
        held_out,
        training.callbacks(recipe, run, policy, "align", shown, savers),
        build.lora_config(recipe),
    )
    return trainer, learner


def _train(trainer, learner, run, policy) -> None:
    from prism_cli.stages import training

    training.train(trainer, run, policy, restore=lambda checkpoint: learner.load(checkpoint / DISCRIMINATOR))


def _check_column(recipe: AlignRecipe, rows) -> None:
    if isinstance(recipe.teacher, DatasetTeacher) and not any(rows["teacher_response"]):
        raise RecipeError(
            "teacher is `dataset`, but no row has a teacher_response", "give --teacher-endpoint URL, or other data"
        )
