"""The sections of alignment: discriminator, its warm-up, and the advantage."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from prism_cli.recipes.section import Fraction, Section, UserPath, type_if_absent


class WarmupSection(Section):
    """Bradley-Terry training of the discriminator before the game; a cold judge gives no gradient."""

    pairs: PositiveInt = 120000
    """Pairs (teacher part, policy part) to train on."""
    batch_size: PositiveInt = 128
    """Pairs a step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate, cosine schedule."""
    warmup_fraction: Fraction = 0.1
    """Share of steps over which the learning rate rises."""
    temperature: PositiveFloat = 1.0
    """Temperature at which the policy's side is sampled; above 1 more of its texts differ from the teacher's, so that a
    small judge learns from fewer pairs."""
    held_out: PositiveInt = 64
    """Pairs kept aside to measure the judge's accuracy."""


class _DiscriminatorSection(Section):
    path: UserPath | None = None
    """Folder of a warmed-up discriminator; null builds one and warms it up."""
    base: UserPath | None = None
    """Dense model it is built from, a folder or hub id with the policy's vocabulary (the paper: Qwen3-VL 2B); null
    takes the starting policy."""
    readout: Literal["last", "mean"] = "last"
    """Where a part's score is read: at its last token (paper), or averaged over its tokens."""
    dropout: Fraction = 0.1
    """Dropout in the head."""
    head_std: PositiveFloat = 0.02
    """Standard deviation of the head's initial weights; scores start at about head_std · √width, so a narrow model
    wants more than the paper's."""
    learning_rate: PositiveFloat = 1e-6
    """AdamW learning rate, constant."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW weight decay."""
    score_clip: PositiveFloat = 10.0
    """Scores are clipped to ± this."""
    score_penalty: NonNegativeFloat = 0.001
    """Weight of the mean squared score in the loss."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clip."""
    micro_batch: PositiveInt = 16
    """Rollouts a forward pass; bounds memory, changes no result."""
    warmup: WarmupSection = WarmupSection()
    """The warm-up before the game."""


class MoEDiscriminator(_DiscriminatorSection):
    """Mixture of experts, sparsely upcycled from the starting policy (paper)."""

    type: Literal["moe"] = "moe"
    experts: PositiveInt = 4
    """Experts a layer."""
    top_k: PositiveInt = 2
    """Experts a token."""
    noise: NonNegativeFloat = 0.01
    """Standard deviation of the noise on the copied experts."""
    noise_scale: Literal["absolute", "relative"] = "absolute"
    """Whether `noise` is absolute (paper) or a share of each weight's own standard deviation."""
    balance: NonNegativeFloat = 0.0
    """Load-balancing coefficient in the game (0.01 in warm-up, paper)."""


class DenseDiscriminator(_DiscriminatorSection):
    """A dense copy of the starting policy's body."""

    type: Literal["dense"]


class TextOnlyDiscriminator(_DiscriminatorSection):
    """A dense discriminator that never sees the picture (ablation)."""

    type: Literal["text_only"]


Discriminator = Annotated[
    MoEDiscriminator | DenseDiscriminator | TextOnlyDiscriminator, Field(discriminator="type"), type_if_absent("moe")
]


class AdvantageSection(Section):
    """How scores become the policy's advantage."""

    rule: Literal["per_part", "combined"] = "per_part"
    """Normalise each part within the group, then weigh (released code), or weigh, then normalise (paper, Eq. 3)."""
    malformed: Literal["floor", "apart"] = "floor"
    """Malformed rollouts enter the group at its smallest score − 1 (paper), or are kept apart from normalising."""
    malformed_penalty: NonNegativeFloat = 1.5
    """Taken off a malformed rollout's advantage."""
    std_floor: NonNegativeFloat = 0.0
    """Smallest standard deviation to divide by; above 0 a judge that can't tell gives little noise."""
