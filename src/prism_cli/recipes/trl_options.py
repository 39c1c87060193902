"""Options of TRL's SFTConfig and GRPOConfig, read from the installed sources, because importing TRL takes seconds."""

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prism_cli.errors import PrismError
from prism_cli.recipes.problems import describe, nearest

CONFIGS = {"sft": "SFTConfig", "align": "GRPOConfig", "rl": "GRPOConfig"}
SOURCES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
    ("trl", "trainer/grpo_config.py", "GRPOConfig"),
)

# Options set by the stages → recipe key.
_OWNED_BY_ALL = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "model_init_kwargs": "model",
    "max_steps": "max_steps",
    "num_train_epochs": "epochs",
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "lr_scheduler_type": "optimizer.schedule",
    "warmup_steps": "optimizer.warmup_fraction",
    "warmup_ratio": "optimizer.warmup_fraction",
    "adam_beta2": "optimizer.beta2",
    "max_grad_norm": "optimizer.max_grad_norm",
    "logging_steps": "log_every",
    "logging_strategy": "log_every",
    "save_steps": "checkpoint.every",
    "save_strategy": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "checkpoint.evaluate_every",
    "eval_strategy": "checkpoint.evaluate_every",
    "load_best_model_at_end": "checkpoint.best_by",
    "metric_for_best_model": "checkpoint.best_by",
    "greater_is_better": "checkpoint.best_by",
}
_OWNED_BY_ROLLOUTS = _OWNED_BY_ALL | {
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "prompts_per_step, rollouts and micro_batch",
    "generation_batch_size": "prompts_per_step and rollouts",
    "steps_per_generation": "prompts_per_step, rollouts and micro_batch",
    "num_generations": "rollouts",
    "max_completion_length": "max_response_tokens",
    "temperature": "temperature",
    "beta": "kl",
    "vllm_mode": "generation.mode",
    "vllm_gpu_memory_utilization": "generation.memory",
    "vllm_enable_sleep_mode": "generation.sleep",
    "vllm_tensor_parallel_size": "generation.tensor_parallel",
    "vllm_max_model_length": "generation.max_model_tokens",
    "vllm_server_base_url": "generation.server",
    "vllm_importance_sampling_correction": "generation.importance_correction",
}
OWNED = {
    "sft": _OWNED_BY_ALL
    | {
        "per_device_train_batch_size": "batch_size",
        "gradient_accumulation_steps": "gradient_accumulation",
        "max_length": "max_tokens",
    },
    "align": _OWNED_BY_ROLLOUTS
    | {
        "epsilon": "clip",
        "epsilon_high": "clip",
        "delta": "dual_clip",
        "scale_rewards": "advantage",
        "loss_type": "clip and dual_clip (the method's loss is fixed)",
        "importance_sampling_level": "clip (the method's ratio is fixed)",
        "reward_weights": "response.parts",
        "multi_objective_aggregation": "advantage.rule",
    },
    "rl": _OWNED_BY_ROLLOUTS
    | {
        "epsilon": "algorithm.clip_low",
        "epsilon_high": "algorithm.clip_high",
        "delta": "algorithm.dual_clip",
        "loss_type": "algorithm.type",
        "importance_sampling_level": "algorithm.type",
        "reward_weights": "rewards",
    },
}
# Options set by the stages that no recipe key changes → reason.
FIXED = {
    "resume_from_checkpoint": "rerun the command to continue, --fresh to start over",
    "save_only_model": "checkpoints hold what resuming needs",
    "remove_unused_columns": "the stage needs every column",
    "logging_nan_inf_filter": "a non-finite loss must be seen",
    "use_vllm": "generation.type names the backend",
    "completion_only_loss": "the loss is on the response alone",
    "hub_token": "log in with `hf auth login`; a recipe is copied into model cards",
}
FIXED_IN_ALIGN = {"num_iterations": "policy and discriminator take one update each a batch"}


def option_problems(stage: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Problems in a recipe's `trainer` section, as (option, text).

    Args:
        stage: sft, align or rl.
        options: The section as written.
    """
    known = option_types(CONFIGS[stage]) if options else {}
    fixed = FIXED | FIXED_IN_ALIGN if stage == "align" else FIXED
    free = [name for name in known if name not in OWNED[stage] and name not in fixed]
    for name, value in options.items():
        if name in OWNED[stage]:
            yield name, f"the stage sets this; use the recipe's own {OWNED[stage][name]}"
        elif name in fixed:
            yield name, f"the stage sets this: {fixed[name]}"
        elif name not in known:
            yield name, f"{CONFIGS[stage]} has no such option{nearest(str(name), free)}"
        elif (expected := _mismatch(known[name], value)) is not None:
            yield name, f"expected {expected}, found {describe(value)}"


@lru_cache(maxsize=2)
def option_types(config: str) -> dict[str, frozenset[str]]:
    """Name → types of an option (`int`, `float`, `bool`, `str`, `dict`, `list`, `None`; else any value).

    Args:
        config: SFTConfig or GRPOConfig.
    """
    types: dict[str, frozenset[str]] = {}
    for package, file, name in SOURCES:
        if name in ("TrainingArguments", "_BaseConfig", config):
            types |= _class_fields(_package_folder(package) / file, name)
    return types


def _package_folder(package: str) -> Path:
    spec = find_spec(package)  # finds without importing
    if spec is None or spec.origin is None:
        raise PrismError(f"the package {package} is not installed", f"pip install {package}")
    return Path(spec.origin).parent


def _class_fields(path: Path, class_name: str) -> dict[str, frozenset[str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return {
        node.target.id: frozenset(_type_names(node.annotation))
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _type_names(annotation: ast.expr) -> Iterator[str]:
    """The members of `A | B | None`, without their parameters."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            yield from _type_names(left)
            yield from _type_names(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=constant)):
            yield type(constant).__name__
        case ast.Subscript(value=value):
            yield from _type_names(value)
        case _:
            yield ast.unparse(annotation)


NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a section",
    "list": "a list",
    "None": "null",
}


def _mismatch(types: frozenset[str], value: Any) -> str | None:
    """The expected types in words, or None if the value fits. Enumerations, which include `str`, are left to TRL."""
    plain = types & NAMES.keys()
    if types - plain - {"str"} and "str" not in types:
        return None
    actual = "None" if value is None else type(value).__name__
    if actual in plain or (actual == "int" and "float" in plain):
        return None
    return " or ".join(text for name, text in NAMES.items() if name in plain)
