"""`prism rl`: reinforcement with verifiable rewards; GRPO, DAPO or GSPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism_cli.errors import DataError, RecipeError
from prism_cli.recipes.stages import RLRecipe
from prism_cli.recipes.training import DAPO, GSPO
from prism_cli.stages import build, checks
from prism_cli.stages.checks import Plan

SHOWN = {
    "rewards/accuracy/mean": "accuracy",
    "responses/malformed_fraction": "malformed",
    "completions/mean_length": "length",
}


def check(recipe: RLRecipe, pending: bool = False) -> Plan:
    """What would be done; finds what is wrong without a model.

    Args:
        recipe: The resolved recipe.
        pending: The run it starts from is an earlier step of the same pipeline and need not exist yet.

    Raises:
        PrismError: see the `check_…` functions.
    """
    plan = [*checks.check_start(recipe, "rl", pending), *checks.check_data(recipe.data, "rl")]
    if recipe.eval_data is not None:
        plan += checks.check_data(recipe.eval_data, "rl", "eval_data")
    checks.check_training(recipe)
    if isinstance(recipe.algorithm, DAPO) and recipe.algorithm.overlong_buffer >= recipe.max_response_tokens:
        raise RecipeError(
            f"algorithm.overlong_buffer {recipe.algorithm.overlong_buffer} is not below max_response_tokens "
            f"{recipe.max_response_tokens}, so every response would be penalised",
            "lower algorithm.overlong_buffer; 0 switches the penalty off",
        )
    length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs} epochs"
    rollouts = f"{recipe.prompts_per_step} prompts × {recipe.rollouts} rollouts a step"
    reward = f"{recipe.rewards.accuracy} · accuracy + {recipe.rewards.format} · format"
    return [*plan, ("reward", reward), ("training", f"{recipe.algorithm.type}, {length}, {rollouts}")]


def run(recipe: RLRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    run = build.open_stage(recipe, "rl", build.lineage(recipe), fresh, command)
    if build.already_done(run):
        return run.folder
    from prism_cli.data.lengths import refuse_mixed, refuse_over_long, refuse_too_few
    from prism_cli.stages import training
    from prism_cli.trainers.grpo import PRESETS, GRPOTrainer

    with run.working():
        policy = build.start_policy(recipe)
        rows = build.load_data(recipe.data, policy, "rl")
        held_out = build.load_data(recipe.eval_data, policy, "rl") if recipe.eval_data else None
        refuse_mixed(rows)
        refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
        _check_answers(rows)
        refuse_too_few(rows, recipe.prompts_per_step)
        training.seed(recipe)
        rules, weights = _rewards(recipe)
        extra = {
            **checks.rollout_batch(recipe).arguments(),
            **PRESETS[recipe.algorithm.type],
            **_clips(recipe),
            "beta": recipe.kl,
            "num_generations_eval": 2,
            "per_device_eval_batch_size": 2 * recipe.micro_batch,
        }
        trainer = GRPOTrainer(
            policy,
            rules,
            weights,
            training.arguments(recipe, run, extra),
            rows,
            held_out,
            training.callbacks(recipe, run, policy, "RL", SHOWN),
            build.lora_config(recipe),
        )
        training.train(trainer, run, policy)
    return run.folder


def _clips(recipe: RLRecipe) -> dict[str, Any]:
    algorithm = recipe.algorithm
    dual = {} if isinstance(algorithm, GSPO) else {"delta": algorithm.dual_clip}
    return {"epsilon": algorithm.clip_low, "epsilon_high": algorithm.clip_high, **dual}


def _rewards(recipe: RLRecipe):
    """The reward rules of the recipe and their weights."""
    from prism_cli.rewards.accuracy import is_correct
    from prism_cli.rewards.format import format_reward
    from prism_cli.rewards.shaping import overlong_penalty
    from prism_cli.trainers.grpo import VerifiedReward

    def accuracy(response, row, length) -> float:
        return float(
            response.answer is not None and is_correct(response.answer, row["answers"], row["prompt"][-1]["content"])
        )

    rules = {"accuracy": accuracy, "format": lambda response, row, length: format_reward(response)}
    weights = {"accuracy": recipe.rewards.accuracy, "format": recipe.rewards.format}
    if isinstance(recipe.algorithm, DAPO) and recipe.algorithm.overlong_buffer:
        buffer = recipe.algorithm.overlong_buffer
        rules["overlong"] = lambda response, row, length: overlong_penalty(length, recipe.max_response_tokens, buffer)
        weights["overlong"] = 1.0
    return VerifiedReward(rules), weights


def _check_answers(rows) -> None:
    missing = [id for id, answers in zip(rows["id"], rows["answers"], strict=True) if not answers]
    if missing:
        raise DataError(
            f"{len(missing)} rows have no answer to verify against, the first is {missing[0]}",
            "give `answer` or `answers` in each row, or drop these rows",
        )
