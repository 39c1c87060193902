"""Sections of alignment: discriminator, warm-up, advantage, early stopping."""

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
    """Low-rank adapters instead of all weights (PEFT)."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """LoRA's α; the adapters are scaled by alpha / rank."""


class WarmupSection(Section):
    """Bradley-Terry training of the discriminator on pairs, before adversarial training."""

    data: Annotated[FileData | None, instead(None)] = None
    """Pairs to train on: rows with `teacher_…` and `student_…` texts, as written by `prism collect --from RUN` or as
    published. Null samples the policy and asks the teacher."""
    pairs: Annotated[PositiveInt, at_most(16)] = 120000
    """Pairs (teacher part, policy part) to train on; with `data`, an upper limit."""
    epochs: Annotated[PositiveInt, at_most(1)] = 1
    """Maximum passes over the pairs. The learning-rate schedule spans all of them; `stop_in` may end the training
    earlier."""
    batch_size: Annotated[PositiveInt, at_most(8)] = 128
    """Pairs per step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate of the cosine schedule."""
    warmup_fraction: Fraction = 0.1
    """Share of steps over which the learning rate rises."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the policy's side of the pairs. Above 1 its texts differ more from the teacher's, so a
    small discriminator needs fewer pairs."""
    held_out: Annotated[PositiveInt, at_most(8)] = 64
    """Pairs held out to measure the discriminator's accuracy; with `data`, the first ones."""
    measure_every: PositiveInt = 100
    """Steps between measurements on the held-out pairs."""
    stop_in: Annotated[Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None, instead(None)] = None
    """[low, high], such as [0.7, 0.85]: the warm-up ends at the first measurement in which the accuracy of every part
    is at least `low`; above `high` the discriminator is reported as saturated. Null trains on all pairs."""
    checkpoint_every: PositiveInt = 100
    """Steps between checkpoints; the newest one is kept until the warm-up is complete."""
    lora: DiscriminatorLoRA | None = None
    """Train low-rank adapters on the attention layers (and the MLPs of a dense discriminator) and the head instead of
    all weights; the adapters are merged at the end."""

    @model_validator(mode="after")
    def _band(self):
        if self.stop_in is not None and self.stop_in[0] >= self.stop_in[1]:
            raise ValueError("stop_in: the first number must be below the second")
        return self


class _DiscriminatorSection(Section):
    path: UserPath | None = None
    """Folder or hub id of a discriminator: written by `prism discriminator create` or `warmup` or by an align run, or
    as released by the paper's authors. One that was not warmed up is warmed up first. Null builds one."""
    base: UserPath | None = None
    """Dense model to build it from: a folder or hub id with the policy's vocabulary (paper: Qwen3-VL 2B). Null takes
    the starting policy."""
    readout: Literal["last", "mean"] = "last"
    """Read-out of a part's score: at the part's last token (paper), or the mean over its tokens."""
    dropout: Fraction = 0.1
    """Dropout in the head."""
    head_std: PositiveFloat = 0.02
    """Standard deviation of the head's initial weights. Initial scores are about head_std · √width, so a narrow model
    needs a larger value than the paper's."""
    learning_rate: PositiveFloat = 1e-6
    """Constant AdamW learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW weight decay."""
    score_clip: PositiveFloat = 10.0
    """Scores are clipped to [−score_clip, score_clip]."""
    score_penalty: NonNegativeFloat = 0.001
    """Weight of the mean squared score in the loss."""
    max_grad_norm: PositiveFloat = 1.0
    """Maximum gradient norm."""
    micro_batch: PositiveInt = 16
    """Rollouts per forward pass; limits memory, does not change results."""
    probe_every: Annotated[PositiveInt | None, at_most(1)] = 50
    """Steps between shortcut probes, which test whether length, format or a wrong picture separates teacher and policy
    as well as the discriminator does; null for none."""
    warmup: WarmupSection = WarmupSection()
    """The warm-up before adversarial training."""


class MoEDiscriminator(_DiscriminatorSection):
    """Mixture of experts, sparsely upcycled from the starting policy (paper)."""

    type: Literal["moe"] = "moe"
    experts: PositiveInt = 4
    """Experts per layer."""
    top_k: PositiveInt = 2
    """Experts per token."""
    noise: NonNegativeFloat = 0.01
    """Standard deviation of the noise added to the copied experts."""
    noise_scale: Literal["absolute", "relative"] = "absolute"
    """`absolute` (paper), or `relative` to the standard deviation of each weight matrix."""
    balance: NonNegativeFloat = 0.0
    """Coefficient of the load-balancing loss in adversarial training; in the warm-up it is 0.01 (paper)."""


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
    """The policy's advantage, from the discriminator's scores."""

    rule: Literal["per_part", "combined"] = "per_part"
    """`per_part` normalises each part within the group and then takes the weighted sum (released code); `combined`
    normalises the weighted sum (paper, Eq. 3)."""
    weights: dict[str, NonNegativeFloat] | None = None
    """Part name → weight α; null takes the weights of `response.parts`. They are rescaled to the same sum."""
    malformed: Literal["floor", "apart"] = "floor"
    """`floor`: malformed rollouts get the group's smallest score − 1 (paper). `apart`: they are excluded from the
    normalisation."""
    malformed_penalty: NonNegativeFloat = 1.5
    """Subtracted from the advantage of a malformed rollout."""
    std_floor: NonNegativeFloat = 0.0
    """Lower limit of the standard deviation to divide by. Above 0, near-equal scores of an uncertain discriminator are
    not amplified to full-size advantages."""


class StopSection(Section):
    """Early stopping of alignment, once no part's drift (docs/drift.md) has fallen over the last measurements."""

    min_steps: NonNegativeInt = 100
    """Minimum steps before stopping."""
    every: PositiveInt = 25
    """Steps between measurements; each uses all rollouts since the previous one, without extra sampling."""
    patience: PositiveInt = 3
    """Measurements without a decrease after which training stops."""
    delta: NonNegativeFloat = 0.01
    """Minimum decrease below a part's lowest drift so far that counts as a decrease."""
