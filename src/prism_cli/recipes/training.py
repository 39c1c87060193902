"""Sections of training: rewards, RL algorithms, optimiser, checkpoints."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from prism_cli.recipes.section import Fraction, Section, at_most, instead, type_if_absent
from prism_cli.recipes.teachers import LLMJudge


class CustomReward(Section):
    """A user-defined reward."""

    function: str
    """Dotted path of a function, such as `my_rewards.short`. It is called with (response, row, length) and returns a
    number, or None for no score."""
    weight: float = 1.0
    """Weight in the total reward."""


class RewardsSection(Section):
    """The total reward, Σ weight · reward. A malformed response gets 0 for accuracy and format."""

    accuracy: NonNegativeFloat = 0.8
    """Weight of the verified correctness of the final answer."""
    format: NonNegativeFloat = 0.2
    """Weight of being well-formed."""
    repetition: NonNegativeFloat = 0.0
    """Weight of the penalty on repeated phrases (0 to −1); 0 for none."""
    custom: dict[str, CustomReward] = Field(default_factory=dict)
    """Name → user-defined reward."""
    llm_judge: Annotated[LLMJudge | None, instead(None)] = None
    """LLM that decides whether a free-text answer means the same as an accepted one, where the rules find it wrong. If
    it fails, the response is left unscored. Null: the rules alone decide."""
    max_wrong: Fraction = 0.2
    """Maximum share of the teacher's answers that the rewards may score as wrong; above it training is refused."""


class GRPO(Section):
    """Group-relative policy optimisation."""

    type: Literal["grpo"] = "grpo"
    clip_low: PositiveFloat = 0.2
    """Clip range of the probability ratio below 1."""
    clip_high: PositiveFloat = 0.2
    """Clip range of the probability ratio above 1."""
    dual_clip: PositiveFloat | None = 3.0
    """Upper bound of the ratio for negative advantages; null for none."""

    @property
    def oversampling(self) -> int:
        """Prompts rolled out at once, as a multiple of `prompts_per_step`."""
        return 1


class DAPO(Section):
    """Decoupled clip ranges, token-mean loss, penalty on overlong responses, dynamic sampling (DAPO)."""

    type: Literal["dapo"]
    clip_low: PositiveFloat = 0.2
    """Clip range of the probability ratio below 1."""
    clip_high: PositiveFloat = 0.28
    """Clip range of the probability ratio above 1."""
    dual_clip: PositiveFloat | None = 10.0
    """Upper bound of the ratio for negative advantages; null for none."""
    overlong_buffer: Annotated[NonNegativeInt, at_most(8)] = 4096
    """Number of tokens before `max_response_tokens` over which the length penalty falls from 0 to −1."""
    oversample: Annotated[PositiveInt, at_most(2)] = 3
    """Prompts per round of dynamic sampling, as a multiple of `prompts_per_step`."""
    max_rounds: Annotated[NonNegativeInt, at_most(2)] = 10
    """Maximum rounds of dynamic sampling: groups of rollouts with equal accuracy are dropped and the batch is refilled;
    after the last round the step trains on the groups it has. 0 for no dynamic sampling."""

    @property
    def oversampling(self) -> int:
        """Prompts rolled out at once, as a multiple of `prompts_per_step`."""
        return self.oversample if self.max_rounds else 1


class GSPO(Section):
    """Group sequence policy optimisation: probability ratios of sequences instead of tokens."""

    type: Literal["gspo"]
    clip_low: PositiveFloat = 3e-4
    """Clip range of the probability ratio below 1."""
    clip_high: PositiveFloat = 4e-4
    """Clip range of the probability ratio above 1."""

    @property
    def oversampling(self) -> int:
        """Prompts rolled out at once, as a multiple of `prompts_per_step`."""
        return 1


Algorithm = Annotated[GRPO | DAPO | GSPO, Field(discriminator="type"), type_if_absent("grpo")]


class OptimizerSection(Section):
    """AdamW with the defaults of align and RL."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning-rate schedule after the warm-up."""
    warmup_fraction: Fraction = 0.0
    """Share of steps over which the learning rate rises from 0."""
    beta2: Fraction = 0.999
    """Decay rate of the second moment."""
    max_grad_norm: PositiveFloat = 1.0
    """Maximum gradient norm."""


class SFTOptimizerSection(OptimizerSection):
    """AdamW with the defaults of SFT."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup_fraction: Fraction = 0.1
    """Share of steps over which the learning rate rises from 0."""


class CheckpointSection(Section):
    """Intervals of saving and evaluating, and the checkpoints to keep."""

    every: Annotated[PositiveInt, at_most(2)] = 50
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep, in addition to the best."""
    evaluate_every: Annotated[PositiveInt | None, at_most(2)] = None
    """Steps between evaluations on `eval_data`; null for none."""
    best_by: str | None = None
    """Metric of the held-out evaluation (`loss`: lower is better, any other: higher) by which the checkpoint is chosen
    that becomes the stage's model. Null takes the last one."""
