"""`prism rl`: reinforcement with verifiable rewards; GRPO, DAPO or GSPO."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import get_console

from prism_cli import processes
from prism_cli.assembly import checks, tracking
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import check_rollouts, chosen_backend, vllm_rollouts
from prism_cli.assembly.policy import lora_config, resolve_start
from prism_cli.assembly.rewards import build_rewards, check_rewards
from prism_cli.errors import DataError, RecipeError
from prism_cli.recipes.stages import RLRecipe
from prism_cli.recipes.training import DAPO, GSPO
from prism_cli.runs.folder import Run
from prism_cli.stages.rl_audit import audit_before_training
from prism_cli.trainers.verified_reward import VerifiedReward

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy
    from prism_cli.trainers.grpo import GRPOTrainer

SHOWN = {
    "rewards/accuracy/mean": "accuracy",
    "responses/malformed_fraction": "malformed",
    "completions/mean_length": "length",
    "sampling/rounds": "rounds",
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
    tracking.check(recipe.trainer)
    _check_updates(recipe)
    if isinstance(recipe.algorithm, DAPO) and recipe.algorithm.overlong_buffer >= recipe.max_response_tokens:
        raise RecipeError(
            f"algorithm.overlong_buffer {recipe.algorithm.overlong_buffer} is not below max_response_tokens "
            f"{recipe.max_response_tokens}, so every response would be penalised",
            "lower algorithm.overlong_buffer; 0 switches the penalty off",
        )
    length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs} epochs"
    updates = recipe.trainer.get("num_iterations", 1)
    often = "a step" if updates == 1 else f"for {updates} steps"
    rollouts = f"{recipe.prompts_per_step} prompts × {recipe.rollouts} rollouts {often}"
    start = resolve_start(recipe)
    plan += check_rollouts(
        recipe.generation, start.tiny, start.four_bits, recipe.launch.processes, recipe.longest_tokens
    )
    plan += [*check_rewards(recipe), ("training", f"{recipe.algorithm.type}, {length}, {rollouts}")]
    if isinstance(recipe.algorithm, DAPO) and recipe.algorithm.max_rounds:
        a_round = recipe.algorithm.oversample * recipe.prompts_per_step
        rounds = f"{recipe.algorithm.max_rounds} rounds of {a_round} prompts a step at most"
        plan += [("dynamic sampling", f"{rounds}, until {recipe.prompts_per_step} are neither all right nor all wrong")]
    return plan


def run(recipe: RLRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    from prism_cli.assembly.out_of_memory import training_run

    with training_run("rl", recipe, fresh, command) as run:
        if run.finished:
            return run.folder
        from prism_cli.assembly import training

        policy = training.start(recipe)
        rows, held_out = _rows(recipe, policy)
        processes.from_main(lambda: audit_before_training(recipe, rows, policy.settings))
        training.seed(recipe)
        with build_rewards(recipe, run.folder) as rewards:
            trainer = _trainer(recipe, run, policy, rewards, rows, held_out)
            training.train(trainer, run, policy, trainer.load_position)
    return run.folder


def _rows(recipe: RLRecipe, policy: "Policy") -> tuple["Dataset", "Dataset | None"]:
    """The prompts and the held-out ones, seen to be fit."""
    from prism_cli.data.lengths import refuse_mixed, refuse_over_long, refuse_too_few

    with processes.main_first():
        rows = load_data(recipe.data, policy.settings, "rl")
        held_out = load_data(recipe.eval_data, policy.settings, "rl") if recipe.eval_data else None
    refuse_mixed(rows)
    refuse_over_long(rows, policy.processor, recipe.max_prompt_tokens, "max_prompt_tokens")
    _check_answers(rows)
    refuse_too_few(rows, recipe.prompts_per_step)
    return rows, held_out


def _trainer(
    recipe: RLRecipe,
    run: Run,
    policy: "Policy",
    rewards: tuple[VerifiedReward, dict[str, float]],
    rows: "Dataset",
    held_out: "Dataset | None",
) -> "GRPOTrainer":
    from prism_cli.assembly import training
    from prism_cli.trainers.grpo import PRESETS, GRPOTrainer
    from prism_cli.trainers.health import HealthWatch, rl_detectors
    from prism_cli.trainers.rollout_log import RolloutLog

    extra = {
        **checks.rollout_batch(recipe).arguments(),
        **PRESETS[recipe.algorithm.type],
        **_clips(recipe),
        "beta": recipe.kl,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 2 * recipe.micro_batch,
    }
    rules, weights = rewards
    trainer = GRPOTrainer(
        policy,
        rules,
        weights,
        training.arguments(recipe, run, extra),
        rows,
        held_out,
        [
            *training.callbacks(recipe, run, policy, "RL", SHOWN, [lambda folder: trainer.save_position(folder)]),
            HealthWatch(run.folder, rl_detectors(isinstance(recipe.algorithm, GSPO)), get_console()),
            RolloutLog(run.folder, recipe.rollouts_every),
        ],
        lora_config(recipe),
        vllm=vllm_rollouts(
            chosen_backend(recipe.generation, policy), policy, recipe.longest_tokens, resolve_start(recipe).revision
        ),
        resampling=_resampling(recipe),
        judged=recipe.rewards.llm_judge is not None,
    )
    return trainer


def _resampling(recipe: RLRecipe):
    """How dynamic sampling fills a batch, or None without it."""
    from prism_cli.trainers.grpo import Resampling

    algorithm = recipe.algorithm
    if not isinstance(algorithm, DAPO) or not algorithm.max_rounds:
        return None
    return Resampling(algorithm.oversample, algorithm.max_rounds)


def _clips(recipe: RLRecipe) -> dict[str, Any]:
    algorithm = recipe.algorithm
    dual = {} if isinstance(algorithm, GSPO) else {"delta": algorithm.dual_clip}
    return {"epsilon": algorithm.clip_low, "epsilon_high": algorithm.clip_high, **dual}


def _check_updates(recipe: RLRecipe) -> None:
    """A checkpoint holds no rollouts, so none may be written while a batch has updates to come."""
    updates = recipe.trainer.get("num_iterations", 1)
    if updates < 1:
        raise RecipeError(f"trainer.num_iterations: {updates} updates a batch", "give 1 or more")
    checkpoint = recipe.checkpoint
    steps = {"checkpoint.every": checkpoint.every, "checkpoint.evaluate_every": checkpoint.evaluate_every}
    for name, value in {"max_steps": recipe.max_steps, **steps}.items():
        if value is not None and value % updates:
            raise RecipeError(
                f"{name} {value} is not a multiple of trainer.num_iterations {updates}, so a run could end or be "
                "continued in the middle of a batch, whose rollouts no checkpoint holds",
                f"take {value + updates - value % updates}",
            )


def _check_answers(rows) -> None:
    missing = [id for id, answers in zip(rows["id"], rows["answers"], strict=True) if not answers]
    if missing:
        raise DataError(
            f"{len(missing)} rows have no answer to verify against, the first is {missing[0]}",
            "give `answer` or `answers` in each row, or drop these rows",
        )
