"""`prism align`: black-box on-policy distillation, the stage between SFT and RL."""

import json
from collections.abc import Sequence
from pathlib import Path

from prism_cli.errors import CheckpointError, DataError, RecipeError
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.recipes.teachers import DatasetTeacher
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
    if path is not None:
        _check_discriminator(recipe)
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
    from prism_cli.data.lengths import refuse_mixed, refuse_over_long, refuse_too_few
    from prism_cli.models import free_memory
    from prism_cli.stages.showcase import write_showcase
    from prism_cli.stages.warmup import warm_discriminator

    with run.working():
        policy = build.start_policy(recipe)
        rows = build.load_data(recipe.data, policy)
        held_out = build.load_data(recipe.eval_data, policy) if recipe.eval_data else None
        refuse_mixed(rows)
        refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
        _check_column(recipe, *filter(None, (rows, held_out)))
        refuse_too_few(rows, recipe.prompts_per_step)
        with teaching(recipe.teacher, policy.grammar, run, *filter(None, (rows, held_out))) as desk:
            judge = warm_discriminator(recipe, policy, rows, desk, run.folder / "warmup")
            trainer, learner = _trainer(recipe, policy, judge, desk, rows, held_out, run)
            _train(trainer, learner, run, policy)
            judge = learner.discriminator
            judge.save_pretrained(run.folder / DISCRIMINATOR)
            # The showcase loads two more policies: what trained goes first.
            del trainer, learner, policy
            free_memory()
            write_showcase(recipe, run, judge, held_out or rows, desk)
    return run.folder


def _check_discriminator(recipe: AlignRecipe) -> None:
    """Refuses a warm discriminator that is not what the recipe says."""
    section = recipe.discriminator
    settings = Path(section.path or "") / "discriminator.json"
    if not settings.is_file():
        raise CheckpointError(f"no discriminator in {section.path}", "leave out discriminator.path")
    found = json.loads(settings.read_text(encoding="utf-8"))
    for key, name in (("type", "kind"), ("readout", "readout"), ("dropout", "dropout")):
        if found[name] != getattr(section, key):
            raise RecipeError(
                f"the discriminator in {section.path} has {key} {found[name]!r}, the recipe {getattr(section, key)!r}",
                f"set discriminator.{key} to {found[name]}",
            )


def _trainer(recipe: AlignRecipe, policy, judge, desk, rows, held_out, run):
    from prism_cli.models import device
    from prism_cli.stages import training
    from prism_cli.stages.warmup import learner_for
    from prism_cli.trainers.on_policy_distill import AdvantageRule, OnPolicyDistillTrainer

    training.seed(recipe)
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


def _check_column(recipe: AlignRecipe, *sources) -> None:
    if not isinstance(recipe.teacher, DatasetTeacher):
        return
    for rows in sources:
        missing = [id for id, text in zip(rows["id"], rows["teacher_response"], strict=True) if not text]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(rows)} rows have no teacher_response, the first is {missing[0]}",
                "fill the column, drop these rows, or give --teacher-endpoint URL",
            )
