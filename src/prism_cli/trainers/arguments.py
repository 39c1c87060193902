"""From a stage's plain settings to TRL's configs: one function of shared values, one a trainer."""

from pathlib import Path
from typing import Any, NamedTuple

from prism_cli import processes
from prism_cli.errors import RecipeError


class Schedule(NamedTuple):
    """Length of the training, and the steps between logs, evaluations and checkpoints (in optimiser steps).

    Attributes:
        max_steps: Optimiser steps, or None for `epochs`.
        epochs: Passes over the data when `max_steps` is None.
        log_every: Steps between metrics.
        save_every: Steps between checkpoints.
        evaluate_every: Steps between held-out evaluations, or None.
        best_by: Metric of the held-out evaluation that picks the best checkpoint (`loss`: the lowest), or None.
    """

    max_steps: int | None
    epochs: float
    log_every: int
    save_every: int
    evaluate_every: int | None
    best_by: str | None


class AdamW(NamedTuple):
    """The optimiser's settings."""

    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_fraction: float
    beta2: float
    max_grad_norm: float


class RolloutBatch(NamedTuple):
    """Prompts, rollouts and tokens of a step.

    Attributes:
        prompts: Prompts an optimiser step, over all processes.
        rollouts: Rollouts a prompt.
        micro_batch: Rollouts a forward pass and process.
        processes: Training processes.
        max_response_tokens: Longest rollout.
        temperature: Sampling temperature.
    """

    prompts: int
    rollouts: int
    micro_batch: int
    processes: int
    max_response_tokens: int
    temperature: float

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of GRPOConfig.

        Raises:
            ValueError: the step doesn't divide into micro-batches on all processes.
        """
        step, at_once = self.prompts * self.rollouts, self.micro_batch * self.processes
        if step % at_once:
            each, left = divmod(step, self.processes)
            fitting = [str(size) for size in range(1, each + 1) if each % size == 0]
            cure = f"; micro_batch may be {', '.join(fitting)}" if not left else ""
            raise ValueError(
                f"prompts_per_step × rollouts = {step} can't be cut into micro_batch × processes = "
                f"{self.micro_batch} × {self.processes}{cure}"
            )
        return {
            "num_generations": self.rollouts,
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": step // at_once,
            "max_completion_length": self.max_response_tokens,
            "temperature": self.temperature,
        }


def trl_config(kind: type, arguments: dict[str, Any]) -> Any:
    """TRL's config of these arguments, for one device a process.

    Raises:
        RecipeError: TRL or transformers refuses a value, or DeepSpeed is wanted and not installed.
    """
    if arguments.get("deepspeed") is not None:
        processes.deepspeed()
    try:
        config = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{kind.__name__} refuses the recipe: {error}", "change `trainer:` or what it names"
        ) from None
    # With several GPUs in sight transformers would split each batch over them without a launcher (nn.DataParallel),
    # which tears pictures from their rows.
    config._n_gpu = min(config.n_gpu, 1)
    return config


def deepspeed_settings(zero: int, offload: bool) -> dict[str, Any]:
    """DeepSpeed's settings for the trainer's `deepspeed`; what both know, it takes from the trainer (`auto`).

    Args:
        zero: 2 shards gradients and optimiser states, 3 the weights too.
        offload: What is sharded lies in main memory.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    there = {"device": "cpu", "pin_memory": on_gpu} if offload else {"device": "none"}
    sharded: dict[str, Any] = {"stage": zero, "overlap_comm": on_gpu, "offload_optimizer": there}
    if zero == 3:
        sharded |= {"offload_param": there, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": sharded,
        "zero_force_ds_cpu_optimizer": False,  # torch's is fused on a CPU too, and need not be compiled first
        "bf16": {"enabled": "auto"},
        **processes.FLOAT32_GRADIENTS,
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }


def launch_arguments(zero: int | None, offload: bool) -> dict[str, Any]:
    """Keyword arguments of TRL's config that follow from how processes are started.

    Args:
        zero: DeepSpeed's stage, or None.
        offload: See `deepspeed_settings`.
    """
    import torch

    arguments: dict[str, Any] = {} if zero is None else {"deepspeed": deepspeed_settings(zero, offload)}
    if processes.launched() and not torch.accelerator.is_available():
        arguments["ddp_backend"] = "gloo"  # else DeepSpeed and accelerate disagree about how many processes there are
        arguments["ddp_find_unused_parameters"] = False  # as where activations are recomputed: all weights are used
    # Each process reads the rows itself and takes its share: what is read elsewhere must be tensors, a row each.
    # Other processes than the main one would print notices of transformers' again.
    return arguments | {"accelerator_config": {"dispatch_batches": False}, "log_level_replica": "error"}


def shared_arguments(
    output: Path, seed: int, schedule: Schedule, optimizer: AdamW, extra: dict[str, Any]
) -> dict[str, Any]:
    """Keyword arguments common to SFTConfig and GRPOConfig.

    Args:
        output: Folder of the checkpoints.
        seed: Seed of data order, sampling and dropout.
        schedule: Length and rhythm.
        optimizer: AdamW.
        extra: Options passed through by their own names; they win over what is set here.
    """
    import torch  # here, so that checks of a recipe need not import it

    best = {}
    if schedule.best_by:
        best = {
            "metric_for_best_model": schedule.best_by,
            "greater_is_better": not schedule.best_by.endswith("loss"),
        }
    return {
        "output_dir": str(output),
        "seed": seed,
        "max_steps": schedule.max_steps or -1,
        "num_train_epochs": schedule.epochs,
        "logging_steps": schedule.log_every,
        # A non-finite loss must be seen and stop the run, not be averaged away.
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": schedule.save_every,
        # Old checkpoints are removed by CompleteCheckpoints, once the new one is complete.
        "save_total_limit": None,
        "eval_strategy": "steps" if schedule.evaluate_every else "no",
        "eval_steps": schedule.evaluate_every,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(optimizer.schedule, optimizer.schedule),
        "warmup_steps": optimizer.warmup_fraction,
        "adam_beta2": optimizer.beta2,
        "max_grad_norm": optimizer.max_grad_norm,
        "disable_tqdm": True,
        "report_to": "none",
        "bf16": torch.accelerator.is_available(),
        "gradient_checkpointing": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),
        "remove_unused_columns": False,
        **best,
        **extra,
    }
