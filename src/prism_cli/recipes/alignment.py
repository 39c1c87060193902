"""The sections of alignment: discriminator, its warm-up, and the advantage."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from prism_cli.recipes.section import Fraction, Section, UserPath, at_most, instead, type_if_absent
from prism_cli.recipes.sections import FileData


class DiscriminatorLoRA(Section):
    """Train low-rank adapters instead of all weights (PEFT)."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """Scale of the adapters (alpha / rank)."""


class WarmupSection(Section):
    """Bradley-Terry training of the discriminator on pairs, before adversarial training."""

    data: Annotated[FileData | None, instead(None)] = None
    """Rows with `teacher_…` and `student_…` texts, as `prism collect --from RUN` writes them and as published; null
    samples the policy and asks the teacher."""
    pairs: Annotated[PositiveInt, at_most(16)] = 120000
    """Pairs (teacher part, policy part) to train on; of a file, at most."""
    epochs: Annotated[PositiveInt, at_most(1)] = 1
    """Passes over the pairs at most; the learning rate falls over all of them, so with `stop_in` a discriminator that
    learns slowly gets the steps it needs."""
    batch_size: Annotated[PositiveInt, at_most(8)] = 128
    """Pairs a step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate, cosine schedule."""
    warmup_fraction: Fraction = 0.1
    """Share of steps over which the learning rate rises."""
    temperature: PositiveFloat = 1.0
    """Temperature at which the policy's side is sampled; above 1 more of its texts differ from the teacher's, so that a
    small discriminator learns from fewer pairs."""
    held_out: Annotated[PositiveInt, at_most(8)] = 64
    """Pairs kept aside to measure the discriminator's accuracy; of a file, its first."""
    measure_every: PositiveInt = 100
    """Steps between measurements on the pairs kept aside."""
    stop_in: Annotated[Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None, instead(None)] = None
    """Ends the warm-up at the first measurement in which the discriminator's accuracy is at least the first number in
    every part, such as [0.7, 0.85]; above the second it is called saturated. Null trains on all pairs."""
    checkpoint_every: PositiveInt = 100
    """Steps between checkpoints; the last one is kept until the warm-up is done."""
    lora: DiscriminatorLoRA | None = None
    """Train low-rank adapters on the discriminator's attention (a dense one's MLPs too) and its head instead of all
    weights; they are merged at the end."""

    @model_validator(mode="after")
    def _band(self):
        if self.stop_in is not None and self.stop_in[0] >= self.stop_in[1]:
            raise ValueError("stop_in: the first number must be below the second")
        return self


class _DiscriminatorSection(Section):
    path: UserPath | None = None
    """Folder or hub id of a discriminator: of `prism discriminator create` or `warmup`, of an align run, or as its
    authors released it. One not warmed up yet is warmed up first. Null builds one."""
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
    probe_every: Annotated[PositiveInt | None, at_most(1)] = 50
    """Steps between shortcut probes: whether length, format or a wrong picture tells teacher from policy as well as the
    discriminator does; null never."""
    warmup: WarmupSection = WarmupSection()
    """The warm-up before adversarial training."""


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
    """Load-balancing coefficient in adversarial training (0.01 in warm-up, paper)."""


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
    weights: dict[str, NonNegativeFloat] | None = None
    """Part name → its weight α; null takes those of `response.parts`. They are scaled to the same sum."""
    malformed: Literal["floor", "apart"] = "floor"
    """Malformed rollouts enter the group at its smallest score − 1 (paper), or are kept apart from normalising."""
    malformed_penalty: NonNegativeFloat = 1.5
    """Taken off a malformed rollout's advantage."""
    std_floor: NonNegativeFloat = 0.0
    """Smallest standard deviation to divide by; above 0 a discriminator that can't tell gives little noise."""


class StopSection(Section):
    """Early stopping of alignment, once no part's drift (docs/drift.md) has fallen over the last measurements."""

    min_steps: NonNegativeInt = 100
    """Never end before this many steps."""
    every: PositiveInt = 25
    """Steps between measurements; each looks at all rollouts since the one before, and costs no extra sampling."""
    patience: PositiveInt = 3
    """Measurements without a further fall that end the training."""
    delta: NonNegativeFloat = 0.01
    """A part's drift fell when it lies more than this below its lowest value so far."""
