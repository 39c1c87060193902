"""Settings of a discriminator, free of torch: where it comes from, how it learns, how it is warmed up."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from prism_cli.errors import RecipeError

Kind = Literal["moe", "dense", "text_only"]


@dataclass(frozen=True)
class Upcycling:
    """The rule by which a dense body becomes a mixture: each layer's MLP turns into `experts` noisy copies.

    Attributes:
        experts: Experts a layer; every layer is sparse.
        top_k: Experts a token visits.
        noise: Standard deviation of what is added to each expert's weights.
        noise_scale: Whether `noise` is in weight units, or in standard deviations of each weight matrix (saner for
            small models, whose weights are of another size).
        seed: Of noise and router.

    Raises:
        RecipeError: `top_k` is not between 1 and `experts`.
    """

    experts: int = 4
    top_k: int = 2
    noise: float = 0.01
    noise_scale: Literal["absolute", "relative"] = "absolute"
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.top_k <= self.experts:
            raise RecipeError(
                f"a token can't visit {self.top_k} of a layer's {self.experts} experts",
                f"set discriminator.top_k (--top-k) to at most discriminator.experts (--experts), here {self.experts}",
            )


class DiscriminatorStart(NamedTuple):
    """The origin of a discriminator, and how it is read.

    Attributes:
        kind: `moe`, `dense` or `text_only`.
        path: Folder or hub id of one that is there; None makes one.
        base: Folder or hub id of the dense model it is made from; None takes the policy.
        readout: Where a part's score is read: at its last token, or averaged over its tokens.
        dropout: In the head.
        head_std: Standard deviation of a new head's weights.
        upcycling: How a `moe` is made from a dense model; None for the other kinds.
    """

    kind: Kind
    path: str | None
    base: str | None
    readout: Literal["last", "mean"]
    dropout: float
    head_std: float
    upcycling: Upcycling | None


class LearnerSettings(NamedTuple):
    """The learning of a discriminator.

    Attributes:
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        score_clip: Scores enter the loss clipped to ± this; None for no clip.
        score_penalty: Weight of the mean squared score in the loss.
        balance: Weight of the load-balancing loss (`moe` only).
        max_grad_norm: Gradients are scaled down to this norm.
        micro_batch: Rollouts in one forward and backward; bounds memory; the gradient is the same. Whole prompts go
            together; a prompt with more rollouts is read in pieces, once to compare and once more to learn.
        schedule: `cosine` falls to zero over `total_steps`; both rise over `warmup_steps` first.
        warmup_steps: Steps of rising learning rate.
        total_steps: Needed by `cosine`.
        zero: Shard the discriminator over the processes: 2 gradients and optimiser states, 3 the weights too. None
            keeps a full one on each.
        offload: Keep what is sharded in main memory.
        bf16: Compute in bfloat16; the optimiser steps in float32 either way.
    """

    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    score_clip: float | None = 10.0
    score_penalty: float = 0.001
    balance: float = 0.0
    max_grad_norm: float = 1.0
    micro_batch: int = 16
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    zero: Literal[2, 3] | None = None
    offload: bool = False
    bf16: bool = False


class Adapters(NamedTuple):
    """Low-rank adapters that are trained in place of the weights.

    Attributes:
        rank: Of the adapters.
        alpha: Their scale is alpha / rank.
    """

    rank: int
    alpha: int


class WarmupSettings(NamedTuple):
    """The training of a discriminator on pairs before adversarial training.

    Attributes:
        pairs: Pairs to train on, at most.
        held_out: The first pairs, kept aside to measure on.
        epochs: Passes over the pairs, at most.
        batch_size: Pairs a step.
        warmup_fraction: Share of the steps over which the learning rate rises.
        measure_every: Steps between measurements on the held-out pairs.
        checkpoint_every: Steps between checkpoints.
        stop_in: Accuracies between which every part ends the warm-up; None trains on all pairs.
        adapters: Trained in place of the weights and merged at the end; None trains all weights.
        seed: Of dropout.
        learner: How it learns; the warm-up adds the schedule.
    """

    pairs: int
    held_out: int
    epochs: int
    batch_size: int
    warmup_fraction: float
    measure_every: int
    checkpoint_every: int
    stop_in: tuple[float, float] | None
    adapters: Adapters | None
    seed: int
    learner: LearnerSettings


class DiscriminatorSettings(NamedTuple):
    """The settings of a recipe's discriminator.

    Attributes:
        start: Where it comes from.
        learner: How it learns beside the policy.
        warmup: Its training before that.
    """

    start: DiscriminatorStart
    learner: LearnerSettings
    warmup: WarmupSettings
