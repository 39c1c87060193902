"""A discriminator for a policy: made from a dense model, or opened from a folder."""

from typing import Any

from transformers import AutoConfig, AutoTokenizer

from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.saved import model_folder, refuse_no_base, saved_discriminator
from prism_cli.discriminator.settings import DiscriminatorStart
from prism_cli.discriminator.upcycle import dense_body, upcycle
from prism_cli.errors import RecipeError
from prism_cli.models import Policy, load_pretrained


def refuse_unfit(start: DiscriminatorStart, policy: Policy) -> None:
    """Refuses what a discriminator could not be made from, before anything is sampled for it.

    Args:
        start: Where it comes from.
        policy: Whose responses it is to score.

    Raises:
        RecipeError: not a dense Qwen3-VL, or its vocabulary is not the policy's.
    """
    if start.path is not None:
        return
    if start.base is None:
        refuse_no_base(policy.model.config.model_type, "the policy")
        return
    options = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(start.base, **options)
        refuse_no_base(config.model_type, f"discriminator.base {start.base}")
        tokenizer = AutoTokenizer.from_pretrained(start.base, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"can't load discriminator.base {start.base!r}: {reason}", "give the folder or hub id of a Qwen3-VL"
        ) from None
    if tokenizer.get_vocab() != policy.processor.tokenizer.get_vocab():
        raise RecipeError(
            f"discriminator.base {start.base} has another vocabulary than the policy",
            "take a model of the same family",
        )


def discriminator_for(start: DiscriminatorStart, policy: Policy, parts: tuple[str, ...]) -> Discriminator:
    """The discriminator that is to be warmed up: the one in the start's folder, else a new one.

    Args:
        start: Where it comes from.
        policy: Gives its body where the start names no base, and the token a part is read at.
        parts: Names of the parts it scores.

    Raises:
        RecipeError: see `open_discriminator`.
        CheckpointError: it can't be opened.
    """
    if start.path is not None:
        return open_discriminator(start.path, start, policy, parts)
    dense = policy.model if start.base is None else load_pretrained(start.base, dtype="float32")[0]
    body: Any = dense_body(dense) if start.upcycling is None else upcycle(dense, start.upcycling)
    return Discriminator(body, **_reading(start, policy, parts), head_std=start.head_std)


def open_discriminator(path: str, start: DiscriminatorStart, policy: Policy, parts: tuple[str, ...]) -> Discriminator:
    """The discriminator in a folder, in float32: weights in bfloat16 lose small steps to rounding.

    Args:
        path: The folder, or a hub id.
        start: How one that does not say so itself is read.
        policy: Whose tokens it must read.
        parts: Names of the parts it must score.

    Raises:
        RecipeError: it scores other parts, or reads other tokens than the policy's.
        CheckpointError: it can't be opened.
    """
    folder = model_folder(path)
    discriminator = Discriminator.from_pretrained(folder, _reading(start, policy, parts))
    if not saved_discriminator(folder).warm:
        discriminator.parts = parts  # nothing was learned of any part yet
    if discriminator.parts != parts:
        raise RecipeError(
            f"the discriminator in {path} scores {', '.join(discriminator.parts)}, the teacher teaches "
            f"{', '.join(parts)}",
            "leave out discriminator.path, so that one is warmed up on this teacher",
        )
    words, ends = len(policy.processor.tokenizer), policy.processor.tokenizer.eos_token_id
    if discriminator.readout_id != ends or discriminator.body.config.text_config.vocab_size < words:
        raise RecipeError(
            f"the discriminator in {path} reads other tokens than the policy",
            "take one made from a model of the policy's family",
        )
    return discriminator.float()


def _reading(start: DiscriminatorStart, policy: Policy, parts: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of `Discriminator` beside the body: the reading of its texts."""
    return {
        "parts": parts,
        "readout_id": policy.processor.tokenizer.eos_token_id,
        "kind": start.kind,
        "readout": start.readout,
        "dropout": start.dropout,
    }
