"""Policy-gradient algorithms as values: what GRPO, DAPO and GSPO set of TRL's trainer, and what goes with them."""

from typing import Any, NamedTuple

# The mean over all tokens of the batch, of a ratio a token.
TOKEN_LEVEL = {"loss_type": "dapo", "importance_sampling_level": "token"}
# The mean over sequences of a ratio a sequence: TRL needs both settings.
SEQUENCE_LEVEL = {"loss_type": "grpo", "importance_sampling_level": "sequence"}


class Resampling(NamedTuple):
    """Settings of dynamic sampling, see `DynamicSampling`.

    Attributes:
        oversample: Prompts a round, as a multiple of a batch's.
        max_rounds: Rounds a batch at most.
    """

    oversample: int
    max_rounds: int


class Algorithm(NamedTuple):
    """A policy-gradient algorithm.

    Attributes:
        name: As the recipe names it.
        loss: Options of GRPOConfig: loss, level of the ratio, clips.
        by_sequence: There is one ratio a response, not one a token.
        overlong_buffer: The last tokens before the limit over which a length penalty grows; 0 without.
        resampling: Dynamic sampling, or None.
    """

    name: str
    loss: dict[str, Any]
    by_sequence: bool = False
    overlong_buffer: int = 0
    resampling: Resampling | None = None
