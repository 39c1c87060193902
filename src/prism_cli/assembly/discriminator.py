"""The judge a recipe means: built from a dense model, opened from a folder, and its learner."""

from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from prism_cli.assembly.judge_folder import model_folder, refuse_unsupported
from prism_cli.discriminator.learner import DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.saved import saved_discriminator
from prism_cli.discriminator.upcycle import Upcycling, dense_body, upcycle
from prism_cli.errors import RecipeError
from prism_cli.models import Policy, device, load_pretrained
from prism_cli.recipes.alignment import MoEDiscriminator
from prism_cli.recipes.stages import AlignRecipe, WarmupRecipe


def refuse_unfit(section: Any, policy: Policy) -> None:
    """Refuses what a judge could not be built from, before anything is sampled for it.

    Raises:
        RecipeError: not a dense Qwen3-VL, or its vocabulary is not the policy's.
    """
    if section.path is not None:
        return
    if section.base is None:
        refuse_unsupported(policy.model.config, "the policy")
        return
    options = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(section.base, **options)
        refuse_unsupported(config, f"discriminator.base {section.base}")
        tokenizer = AutoTokenizer.from_pretrained(section.base, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"can't load discriminator.base {section.base!r}: {reason}", "give the folder or hub id of a Qwen3-VL"
        ) from None
    if tokenizer.get_vocab() != policy.processor.tokenizer.get_vocab():
        raise RecipeError(
            f"discriminator.base {section.base} has another vocabulary than the policy",
            "take a model of the same family",
        )


def build_discriminator(recipe: AlignRecipe | WarmupRecipe, policy: Policy, parts: tuple[str, ...]) -> Discriminator:
    """A cold judge of the recipe's type for these parts, made from its base or from the policy's body."""
    section = recipe.discriminator
    dense = policy.model if section.base is None else load_pretrained(section.base, dtype="float32")[0]
    if isinstance(section, MoEDiscriminator):
        how = Upcycling(section.experts, section.top_k, section.noise, section.noise_scale, recipe.seed)
        body: Any = upcycle(dense, how)
    else:
        body = dense_body(dense)
    return Discriminator(body, **_settings(section, policy, parts), head_std=section.head_std)


def open_discriminator(section: Any, policy: Policy, parts: tuple[str, ...]) -> Discriminator:
    """The judge in `discriminator.path`, in float32: weights in bfloat16 lose small steps to rounding.

    Raises:
        RecipeError: it judges other parts, or reads other tokens than the policy's.
        CheckpointError: it can't be opened.
    """
    folder = model_folder(section.path)
    judge = Discriminator.from_pretrained(folder, _settings(section, policy, parts))
    if not saved_discriminator(folder).warm:
        judge.parts = parts  # nothing was learned of any part yet
    if judge.parts != parts:
        raise RecipeError(
            f"the discriminator in {section.path} judges {', '.join(judge.parts)}, the teacher teaches "
            f"{', '.join(parts)}",
            "leave out discriminator.path, so that one is warmed up on this teacher",
        )
    words, ends = len(policy.processor.tokenizer), policy.processor.tokenizer.eos_token_id
    if judge.readout_id != ends or judge.body.config.text_config.vocab_size < words:
        raise RecipeError(
            f"the discriminator in {section.path} reads other tokens than the policy",
            "take one made from a model of the policy's family",
        )
    return judge.float()


def is_warm(path: str) -> bool:
    """Whether the judge in a folder was warmed up."""
    return saved_discriminator(model_folder(path)).warm


def learner_for(
    recipe: AlignRecipe | WarmupRecipe, discriminator: Discriminator, whole: bool = False, **schedule: Any
) -> DiscriminatorLearner:
    """The learner of the game, or of the warm-up when its schedule is given; every process makes one.

    On a GPU it computes as the policy does: in bfloat16, each layer's activations twice.

    Args:
        recipe: Of the stage.
        discriminator: Trained in place, on the accelerator if there is one.
        whole: Keep a whole discriminator on each process, whatever `launch.zero` says.
        schedule: Options of the learner that take the place of the recipe's.
    """
    section, launch = recipe.discriminator, recipe.launch
    on_gpu = torch.accelerator.is_available()
    if on_gpu:
        discriminator.recompute_activations()
    zero = None if whole else launch.zero
    options = {
        "learning_rate": section.learning_rate,
        "balance": section.balance if isinstance(section, MoEDiscriminator) else 0.0,
        **schedule,
    }
    return DiscriminatorLearner(
        discriminator if zero else discriminator.to(device()),  # an engine moves what it shards
        weight_decay=section.weight_decay,
        score_clip=section.score_clip,
        score_penalty=section.score_penalty,
        max_grad_norm=section.max_grad_norm,
        micro_batch=section.micro_batch,
        zero=zero,
        offload=launch.offload and zero is not None,
        bf16=on_gpu,
        **options,
    )


def _settings(section: Any, policy: Policy, parts: tuple[str, ...]) -> dict[str, Any]:
    tokenizer = policy.processor.tokenizer
    return {
        "parts": parts,
        "readout_id": tokenizer.eos_token_id,
        "kind": section.type,
        "readout": section.readout,
        "dropout": section.dropout,
    }
