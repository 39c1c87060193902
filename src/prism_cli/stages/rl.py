"""`prism rl`: reinforcement with verifiable rewards; GRPO, DAPO or GSPO."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import get_console

from prism_cli import processes
from prism_cli.assembly import checks, tracking
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import check_rollouts, chosen_backend, vllm_rollouts
from prism_cli.assembly.out_of_memory import training_run
from prism_cli.assembly.planned_job import rl_job
from prism_cli.assembly.policy import lora_config, resolve_start
from prism_cli.assembly.rewards import algorithm_of, build_rewards, check_rewards
from prism_cli.errors import DataError, RecipeError
from prism_cli.recipes.stages import RLRecipe
from prism_cli.stages.rl_audit import audit_before_training
from prism_cli.trainers.algorithms import Algorithm, Resampling
from prism_cli.trainers.verified_reward import VerifiedReward

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy
    from prism_cli.trainers.grpo import GRPOTrainer
    from prism_cli.trainers.setup import TrainerSetup

SHOWN = {
    "rewards/accuracy/mean": "accuracy",
    "responses/malformed_fraction": "malformed",
    "completions/mean_length": "length",
    "sampling/rounds": "rounds",
}


def check(recipe: RLRecipe, pending: bool = False) -> Plan:
    """Plan of the stage; finds mistakes without loading a model.

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
    start = resolve_start(recipe)
    plan += check_rollouts(
        recipe.generation, start.tiny, start.four_bits, recipe.launch.processes, recipe.longest_tokens
    )
    return [*plan, *check_rewards(recipe), *_training_lines(recipe)]


def _training_lines(recipe: RLRecipe) -> Plan:
    algorithm = algorithm_of(recipe.algorithm)
    length = f"{recipe.max_steps} steps" if recipe.max_steps else f"{recipe.epochs} epochs"
    updates = recipe.trainer.get("num_iterations", 1)
    often = "a step" if updates == 1 else f"for {updates} steps"
    rollouts = f"{recipe.prompts_per_step} prompts × {recipe.rollouts} rollouts {often}"
    lines = [("training", f"{algorithm.name}, {length}, {rollouts}")]
    if (resampling := algorithm.resampling) is not None:
        a_round = resampling.oversample * recipe.prompts_per_step
        rounds = f"{resampling.max_rounds} rounds of {a_round} prompts a step at most"
        lines += [
            ("dynamic sampling", f"{rounds}, until {recipe.prompts_per_step} are neither all right nor all wrong")
        ]
    return lines


def run(recipe: RLRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the stage; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    make_job = partial(rl_job, recipe)
    with training_run("rl", recipe, make_job, fresh, command) as run:
        if run.finished:
            return run.folder
        from prism_cli.assembly import training
        from prism_cli.trainers.health import HealthWatch, rl_detectors
        from prism_cli.trainers.setup import TrainerSetup

        policy = training.start(recipe)
        rows, held_out = _rows(recipe, policy)
        processes.from_main(lambda: audit_before_training(recipe, rows, policy.settings))
        settings = training.training_settings(recipe, run)
        training.seed(settings)
        with build_rewards(recipe, run.folder) as rewards:
            algorithm = algorithm_of(recipe.algorithm)
            health = HealthWatch(run.folder, rl_detectors(algorithm.by_sequence), get_console())
            callbacks = training.callbacks(settings, policy, training.Shown("RL", SHOWN), make_job, (health,))
            arguments = settings.arguments(_batch(recipe, algorithm))
            setup = TrainerSetup(
                *(arguments, rows, held_out, callbacks.all(), lora_config(recipe)),
                rollout_log=training.rollout_log(recipe, callbacks, run),
                vllm=vllm_rollouts(
                    *(chosen_backend(recipe.generation, policy), policy, recipe.longest_tokens),
                    resolve_start(recipe).revision,
                ),
            )
            training.train(_trainer(algorithm.resampling, policy, rewards, setup), callbacks, run, policy)
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


def _batch(recipe: RLRecipe, algorithm: Algorithm) -> dict[str, Any]:
    """The stage's own arguments of GRPOConfig."""
    return {
        **checks.rollout_batch(recipe).arguments(),
        **algorithm.loss,
        "beta": recipe.kl,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 2 * recipe.micro_batch,
    }


def _trainer(
    resampling: Resampling | None, policy: "Policy", rewards: VerifiedReward, setup: "TrainerSetup"
) -> "GRPOTrainer":
    from prism_cli.trainers.dapo import DAPOTrainer
    from prism_cli.trainers.grpo import GRPOTrainer

    if resampling is None:
        return GRPOTrainer(policy, rewards, setup)
    return DAPOTrainer(policy, rewards, setup, resampling)


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


def _check_answers(rows: "Dataset") -> None:
    missing = [id for id, answers in zip(rows["id"], rows["answers"], strict=True) if not answers]
    if missing:
        raise DataError(
            f"{len(missing)} rows have no answer to verify against, the first is {missing[0]}",
            "give `answer` or `answers` in each row, or drop these rows",
        )
