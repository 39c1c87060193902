"""The sections of training: rewards, algorithms, optimiser, checkpoints."""

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
    """A reward of the user's own."""

    function: str
    """Dotted path of a function, such as `my_rewards.short`; it is called with (response, row, length) and gives a
    number, or None where it can't tell."""
    weight: float = 1.0
    """Its weight in the reward."""


class RewardsSection(Section):
    """reward = Σ weight · reward; a malformed response gets 0 from accuracy and format."""

    accuracy: NonNegativeFloat = 0.8
    """Weight of the verified final answer."""
    format: NonNegativeFloat = 0.2
    """Weight of being well-formed."""
    repetition: NonNegativeFloat = 0.0
    """Weight of the penalty on repeated phrases (0 to −1); 0 leaves it out."""
    custom: dict[str, CustomReward] = Field(default_factory=dict)
    """Name → a reward of your own."""
    llm_judge: Annotated[LLMJudge | None, instead(None)] = None
    """Asked where the rules find a free-text answer wrong: does it mean the same? Where it fails the response is left
    unscored. Null: the rules alone decide."""
    max_wrong: Fraction = 0.2
    """Largest share of the teacher's own answers that the rewards may judge wrong; above it training is refused."""


class GRPO(Section):
    """Group-relative policy optimisation."""

    type: Literal["grpo"] = "grpo"
    clip_low: PositiveFloat = 0.2
    """Ratio clip below 1."""
    clip_high: PositiveFloat = 0.2
    """Ratio clip above 1."""
    dual_clip: PositiveFloat | None = 3.0
    """Upper bound on the ratio for negative advantages."""


class DAPO(Section):
    """Decoupled clip, token-mean loss, over-long penalty."""

    type: Literal["dapo"]
    clip_low: PositiveFloat = 0.2
    """Ratio clip below 1."""
    clip_high: PositiveFloat = 0.28
    """Ratio clip above 1."""
    dual_clip: PositiveFloat | None = 10.0
    """Upper bound on the ratio for negative advantages."""
    overlong_buffer: Annotated[NonNegativeInt, at_most(8)] = 4096
    """The last tokens before the limit over which a length penalty grows to −1."""
    oversample: Annotated[PositiveInt, at_most(2)] = 3
    """Prompts rolled out a round of dynamic sampling, as a multiple of `prompts_per_step`."""
    max_rounds: Annotated[NonNegativeInt, at_most(2)] = 10
    """Rounds of dynamic sampling at most: groups whose accuracy is all equal are dropped and the batch is refilled;
    after them the step trains on what there is. 0 switches it off."""


class GSPO(Section):
    """Sequence-level ratio."""

    type: Literal["gspo"]
    clip_low: PositiveFloat = 3e-4
    """Ratio clip below 1."""
    clip_high: PositiveFloat = 4e-4
    """Ratio clip above 1."""


Algorithm = Annotated[GRPO | DAPO | GSPO, Field(discriminator="type"), type_if_absent("grpo")]


class OptimizerSection(Section):
    """AdamW, as align and RL use it."""

    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning-rate schedule after the warm-up."""
    warmup_fraction: Fraction = 0.0
    """Share of steps over which the learning rate rises from 0."""
    beta2: Fraction = 0.999
    """Decay of the second moment."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clip."""


class SFTOptimizerSection(OptimizerSection):
    """AdamW, as SFT uses it."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup_fraction: Fraction = 0.1
    """Share of steps over which the learning rate rises from 0."""


class CheckpointSection(Section):
    """When to evaluate on held-out data, when to save, what to keep."""

    every: Annotated[PositiveInt, at_most(2)] = 50
    """Save each time this many steps are done."""
    keep: PositiveInt = 2
    """Newest checkpoints to keep, beside the best."""
    evaluate_every: Annotated[PositiveInt | None, at_most(2)] = None
    """Evaluate on `eval_data` each time this many steps are done; null never."""
    best_by: str | None = None
    """A metric of the held-out evaluation (`loss`: lower is better, any other: higher); the best checkpoint becomes the
    stage's model. Null: the last one does."""
