"""The discriminator of a recipe: its section as settings, checked without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism_cli.discriminator.saved import saved_discriminator
from prism_cli.discriminator.settings import (
    Adapters,
    DiscriminatorSettings,
    DiscriminatorStart,
    LearnerSettings,
    Upcycling,
    WarmupSettings,
)
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.recipes.alignment import DenseDiscriminator, MoEDiscriminator, TextOnlyDiscriminator
from prism_cli.recipes.stages import AlignRecipe, WarmupRecipe

# Published value; adversarial training has none unless the recipe sets one.
WARMUP_BALANCE = 0.01


def discriminator_settings(recipe: AlignRecipe | WarmupRecipe) -> DiscriminatorSettings:
    """The section `discriminator` of a recipe, resolved.

    Raises:
        RecipeError: more experts a token than there are.
    """
    section = recipe.discriminator
    upcycling, balance, warmup_balance = None, 0.0, 0.0
    match section:
        case MoEDiscriminator():
            upcycling = Upcycling(section.experts, section.top_k, section.noise, section.noise_scale, recipe.seed)
            balance, warmup_balance = section.balance, WARMUP_BALANCE
        case DenseDiscriminator() | TextOnlyDiscriminator():
            pass
    start = DiscriminatorStart(
        section.type, section.path, section.base, section.readout, section.dropout, section.head_std, upcycling
    )
    zero = recipe.launch.zero
    learner = LearnerSettings(
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        score_clip=section.score_clip,
        score_penalty=section.score_penalty,
        balance=balance,
        max_grad_norm=section.max_grad_norm,
        micro_batch=section.micro_batch,
        zero=zero,
        offload=recipe.launch.offload and zero is not None,
    )
    return DiscriminatorSettings(start, learner, _warmup(recipe, learner._replace(balance=warmup_balance)))


def _warmup(recipe: AlignRecipe | WarmupRecipe, learner: LearnerSettings) -> WarmupSettings:
    section = recipe.discriminator.warmup
    adapters = None if section.lora is None else Adapters(section.lora.rank, section.lora.alpha)
    learner = learner._replace(learning_rate=section.learning_rate)
    if adapters is not None:
        # Adapters are merged into weights that are all here; their optimiser is too small to shard.
        learner = learner._replace(zero=None, offload=False)
    return WarmupSettings(
        pairs=section.pairs,
        held_out=section.held_out,
        epochs=section.epochs,
        batch_size=section.batch_size,
        warmup_fraction=section.warmup_fraction,
        measure_every=section.measure_every,
        checkpoint_every=section.checkpoint_every,
        stop_in=section.stop_in,
        adapters=adapters,
        seed=recipe.seed,
        learner=learner,
    )


def check_discriminator(recipe: AlignRecipe | WarmupRecipe) -> str:
    """The plan's words about the discriminator; loads nothing and fetches nothing.

    Raises:
        CheckpointError: `discriminator.path` holds no discriminator.
        RecipeError: it is not what the recipe says.
    """
    start = discriminator_settings(recipe).start
    warmup = recipe.discriminator.warmup
    pairs = f"{warmup.pairs} pairs" + (f" of {warmup.data.path}" if warmup.data is not None else "")
    made = f"{start.kind}, warmed up on {pairs}"
    if start.path is None:
        return made
    if not Path(start.path).is_dir():
        if start.path.startswith((".", "/")) or start.path.count("/") != 1:
            raise CheckpointError(f"no discriminator in {start.path}", "leave out discriminator.path")
        return f"{start.kind}, {start.path} from the hub"
    saved = saved_discriminator(Path(start.path))
    # A released one says nothing of itself but what its body is.
    settings: Mapping[str, Any] = saved.settings or {"kind": saved.kind}
    named = {"type": start.kind, "readout": start.readout, "dropout": start.dropout}
    for (key, value), name in zip(named.items(), ("kind", "readout", "dropout"), strict=True):
        if name in settings and settings[name] != value:
            raise RecipeError(
                f"the discriminator in {start.path} has {key} {settings[name]!r}, the recipe {value!r}",
                f"set discriminator.{key} to {settings[name]}",
            )
    if not saved.warm:
        return f"{made}, from {start.path}"
    return f"{start.kind}, {start.path}{'' if saved.settings else ' (released; read as the recipe says)'}"


def samples_pairs(recipe: AlignRecipe | WarmupRecipe) -> bool:
    """Whether an align run will sample pairs to warm its discriminator up on."""
    path = recipe.discriminator.path
    local = Path(path) if path is not None else None
    cold = local is None or (local.is_dir() and not saved_discriminator(local).warm)
    return cold and recipe.discriminator.warmup.data is None


def questions_of_align(recipe: AlignRecipe) -> int | None:
    """The most questions an align run puts to its teacher; None where it asks about every row."""
    if recipe.max_steps is None:
        return None
    warmup = questions_of_warmup(recipe) if samples_pairs(recipe) else 0
    return recipe.max_steps * recipe.prompts_per_step + warmup


def questions_of_warmup(recipe: AlignRecipe | WarmupRecipe) -> int:
    """The most questions that sampling pairs for the warm-up puts to a teacher."""
    return recipe.discriminator.warmup.pairs + recipe.discriminator.warmup.held_out
