"""Model families: what each feature takes, by the `model_type` of a model's config."""

from collections.abc import Callable
from typing import Literal, NamedTuple


class Family(NamedTuple):
    """The features that take models of one `model_type`.

    Attributes:
        discriminator: The kind of discriminator that a body of this family is; None where no discriminator reads its
            tokens, so that its policies can't be aligned.
        dense_base: A new discriminator can be made of its weights, dense or upcycled.
        vllm: vLLM's rollouts were compared with transformers', pictures included.
        prefix_packing: The trainers compute a prompt once for all its rollouts.
        scaled_down: A scaled-down model of the same kind can be made of its config.
    """

    discriminator: Literal["dense", "moe"] | None = None
    dense_base: bool = False
    vllm: bool = False
    prefix_packing: bool = False
    scaled_down: bool = False


FAMILIES = {
    "qwen3_vl": Family("dense", dense_base=True, vllm=True, prefix_packing=True, scaled_down=True),
    "qwen3_vl_moe": Family("moe", prefix_packing=True),
}


def family(model_type: str | None) -> Family:
    """The features that take a model; of a family that the table lacks, those that take any."""
    return FAMILIES.get(model_type or "", Family())


def families_with(feature: Callable[[Family], object]) -> tuple[str, ...]:
    """The model types of the families that have a feature, as errors list them."""
    return tuple(model_type for model_type, one in FAMILIES.items() if feature(one))
