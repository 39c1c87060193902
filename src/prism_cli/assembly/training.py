"""The settings that SFT, align and RL share, from a recipe to TRL's arguments and to callbacks."""

from functools import partial
from typing import Any, NamedTuple

from transformers import Trainer, TrainerCallback, set_seed

from prism_cli.assembly import tracking
from prism_cli.assembly.out_of_memory import memory_watch
from prism_cli.assembly.planned_job import MakeJob
from prism_cli.assembly.policy import start_policy, with_adapter
from prism_cli.models import Policy
from prism_cli.recipes.stages import RolloutStage, Stage, TrainingStage
from prism_cli.runs.folder import Run
from prism_cli.trainers import full_training
from prism_cli.trainers.arguments import AdamW, Schedule, launch_arguments, shared_arguments
from prism_cli.trainers.callbacks import Callbacks, GracefulShutdown, MetricsLog, ProgressBar
from prism_cli.trainers.checkpoints import CompleteCheckpoints, Shards
from prism_cli.trainers.last_step import LastStep
from prism_cli.trainers.rollout_log import RolloutLog
from prism_cli.trainers.sharded import keep_vision_tower_in_step


class TrainingSettings(NamedTuple):
    """The settings that all training stages share.

    Attributes:
        run: The run's folder.
        schedule: Length and rhythm.
        optimizer: AdamW.
        seed: Of data order, sampling and dropout.
        keep: Newest checkpoints to keep.
        zero: DeepSpeed's stage, or None.
        offload: Sharded states lie in main memory.
        processes: Training processes.
        options: Options of TRL's config by their own names, which come last.
    """

    run: Run
    schedule: Schedule
    optimizer: AdamW
    seed: int
    keep: int
    zero: int | None
    offload: bool
    processes: int
    options: dict[str, Any]

    def arguments(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of TRL's config.

        Args:
            batch: The stage's own arguments.
        """
        launch = launch_arguments(self.zero, self.offload)
        extra = {**launch, **batch, **tracking.left_to_transformers(self.options)}
        return shared_arguments(self.run.folder / "checkpoints", self.seed, self.schedule, self.optimizer, extra)


class Shown(NamedTuple):
    """Contents of the progress bar.

    Attributes:
        stage: In front.
        metrics: Metric name → short label.
    """

    stage: str
    metrics: dict[str, str]


def training_settings(recipe: TrainingStage, run: Run) -> TrainingSettings:
    """Resolves the shared settings of a recipe."""
    checkpoint = recipe.checkpoint
    schedule = Schedule(
        recipe.max_steps,
        recipe.epochs,
        recipe.log_every,
        checkpoint.every,
        checkpoint.evaluate_every,
        checkpoint.best_by,
    )
    return TrainingSettings(
        run,
        schedule,
        AdamW(**recipe.optimizer.model_dump()),
        recipe.seed,
        checkpoint.keep,
        recipe.launch.zero,
        recipe.launch.offload,
        recipe.launch.world_size,
        recipe.trainer,
    )


def callbacks(
    settings: TrainingSettings,
    policy: Policy,
    shown: Shown,
    make_job: MakeJob,
    watchers: tuple[TrainerCallback, ...] = (),
) -> Callbacks:
    """The callbacks of a training stage.

    Args:
        settings: See `training_settings`.
        policy: Loaded.
        shown: What the bar shows.
        make_job: Of the stage, to compare memory with.
        watchers: The stage's own.
    """
    run, shards = settings.run, Shards(settings.processes, settings.zero)
    return Callbacks(
        shutdown=GracefulShutdown(settings.options.get("num_iterations", 1)),
        checkpoints=CompleteCheckpoints(settings.keep, shards, policy.save_response_settings),
        progress=ProgressBar(shown.stage, shown.metrics),
        last_step=LastStep(),
        logs=MetricsLog(run.folder / "metrics.jsonl"),
        memory=memory_watch(make_job, policy, run),
        trackers=tracking.trackers(settings.options, run),
        watchers=watchers,
    )


def rollout_log(recipe: RolloutStage, callbacks: Callbacks, run: Run) -> RolloutLog:
    """The log of a stage's rollouts, which its trackers get too."""
    return RolloutLog(run.folder, recipe.rollouts_every, [tracker.rollouts for tracker in callbacks.trackers])


def start(recipe: Stage) -> Policy:
    """The policy that a stage trains; on several processes it reads text as it reads pictures."""
    policy = start_policy(recipe)
    keep_vision_tower_in_step(policy.model)
    return policy


def seed(settings: TrainingSettings) -> None:
    """Seeds what is random in building a trainer (adapters)."""
    set_seed(settings.seed)


def train(trainer: Trainer, callbacks: Callbacks, run: Run, policy: Policy) -> None:
    """Trains to the end and writes the final model, see `full_training.train`."""
    full_training.train(trainer, callbacks, run, policy, partial(with_adapter, run))
