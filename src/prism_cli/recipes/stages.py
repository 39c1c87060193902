"""Recipes of the stages: what a user may write for each. Field names are the override keys (`key.path=value`)."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from prism_cli.recipes.alignment import AdvantageSection, Discriminator, MoEDiscriminator, StopSection
from prism_cli.recipes.benchmarks import BenchmarksSection
from prism_cli.recipes.generation import Generation, TransformersGeneration
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.pipelines import PipelineRecipe, StudyRecipe
from prism_cli.recipes.section import Fraction, Section, UserPath, at_most, instead, type_if_absent
from prism_cli.recipes.sections import Data, ImageSection, LoRA, Model, ResponseSection, world_rows
from prism_cli.recipes.teachers import EmbeddedTeacher, LLMJudge, OpenAITeacher, Teacher, oracle
from prism_cli.recipes.training import (
    GRPO,
    Algorithm,
    CheckpointSection,
    OptimizerSection,
    RewardsSection,
    SFTOptimizerSection,
)

TrainingRows = Annotated[Data | None, world_rows("train", 32)]
TestRows = Annotated[Data | None, world_rows("test", 8)]
Backend = Annotated[Generation | None, instead(TransformersGeneration(type="transformers"))]
Launch = Annotated[LaunchSection, instead(LaunchSection())]
BatchSize = Annotated[PositiveInt, at_most(8)]
PromptTokens = Annotated[PositiveInt, at_most(128)]
ResponseTokens = Annotated[PositiveInt, at_most(32)]


class Stage(Section):
    """Keys shared by the stages that start from a model: SFT, align, RL and the discriminator's warm-up."""

    model: Model | None = None
    """Model to start from; null when `from` names a run."""
    from_: UserPath | None = Field(default=None, alias="from")
    """Run folder (or `RUN@step`) to start from: its final model, processor, parts and image budget."""
    response: ResponseSection | None = None
    """Parts and instruction; null takes those of the run in `from`, else the default grammar."""
    image: ImageSection | None = None
    """Image budget; null takes that of the run in `from`, else the default."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation of the policy. With another than `sdpa` each rollout computes its prompt and picture
    again in the update of align and RL."""
    output: UserPath | None = None
    """Run folder; null gives runs/<stage>."""
    seed: NonNegativeInt = 0
    """Random seed of the stage."""

    @model_validator(mode="after")
    def _one_start(self):
        if self.model is not None and self.from_ is not None:
            raise ValueError("`model` and `from` both say where to start; keep one")
        if self.from_ is not None and (self.response is not None or self.image is not None):
            raise ValueError("`response` and `image` come with the run in `from`; they are the same in all stages")
        return self


class TrainingStage(Stage):
    """Keys shared by SFT, align and RL: data, optimiser, checkpoints, processes."""

    data: TrainingRows = None
    """Training rows."""
    eval_data: Annotated[Data | None, world_rows("tune", 8, null=False)] = None
    """Held-out rows for the evaluation during training."""
    optimizer: OptimizerSection = OptimizerSection()
    """AdamW and its learning-rate schedule."""
    max_steps: Annotated[PositiveInt | None, instead(2)] = None
    """Optimiser steps; null trains `epochs` passes over the data."""
    epochs: PositiveFloat = 1.0
    """Passes over the data when `max_steps` is null."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When to evaluate and save."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights."""
    log_every: Annotated[PositiveInt, at_most(1)] = 1
    """Steps between lines of metrics.jsonl."""
    launch: Launch = LaunchSection()
    """Processes, nodes and sharding."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further options of TRL's config (SFTConfig or GRPOConfig), by TRL's names."""


class SFTRecipe(TrainingStage):
    """Supervised fine-tuning on demonstrations (`prism sft`)."""

    teacher: Annotated[Teacher | None, oracle()] = None
    """Null: the data contains the demonstrations. Otherwise this teacher answers the data's prompts, and its answers
    are the demonstrations; stored answers are reused."""
    optimizer: SFTOptimizerSection = SFTOptimizerSection()
    batch_size: BatchSize = 2
    """Rows per device and forward pass."""
    gradient_accumulation: Annotated[PositiveInt, at_most(2)] = 1
    """Forward passes per optimiser step."""
    max_tokens: Annotated[PositiveInt, at_most(256)] = 8192
    """Maximum tokens of a row: prompt, image and response. Longer rows are refused, never truncated."""


class RolloutStage(TrainingStage):
    """Keys shared by align and RL: rollouts of the policy on prompts."""

    prompts_per_step: Annotated[PositiveInt, instead(2)]
    """Prompts per optimiser step."""
    rollouts: Annotated[int, Field(ge=2), at_most(4)] = 16
    """Rollouts per prompt."""
    micro_batch: Annotated[PositiveInt, at_most(2)] = 4
    """Rollouts per process and forward pass of the policy's update; limits memory."""
    max_prompt_tokens: PromptTokens = 2048
    """Maximum tokens of a prompt with its image; longer rows are refused."""
    max_response_tokens: ResponseTokens
    """Maximum tokens of a rollout."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the rollouts."""
    generation: Backend = None
    """Backend that generates the rollouts; null takes vLLM where it is installed and supports the model, else
    transformers."""
    kl: NonNegativeFloat = 0.0
    """Weight of the KL divergence from the starting policy."""
    rollouts_every: Annotated[PositiveInt | None, at_most(1)] = 25
    """Steps between rollouts saved with their pictures for the report; null saves none."""

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest prompt and response together."""
        return self.max_prompt_tokens + self.max_response_tokens


class AlignRecipe(RolloutStage):
    """Alignment to the texts of a black-box teacher (`prism align`)."""

    teacher: Annotated[Teacher, oracle()] = OpenAITeacher()
    """Teacher that answers the prompts."""
    discriminator: Discriminator = MoEDiscriminator()
    """Discriminator that scores each part of a response."""
    advantage: AdvantageSection = AdvantageSection()
    """From scores to advantages."""
    stop: StopSection | None = None
    """Early stopping; null trains all steps."""
    max_steps: PositiveInt | None = 500
    prompts_per_step: PositiveInt = 4
    max_response_tokens: PositiveInt = 6144
    clip: PositiveFloat = 0.2
    """Clip range of the probability ratio around 1."""
    dual_clip: PositiveFloat | None = 3.0
    """Upper bound of the ratio for negative advantages; null for none."""


class WarmupRecipe(Stage):
    """A discriminator trained on pairs of teacher and policy, for later align runs (`prism discriminator warmup`)."""

    data: TrainingRows = None
    """Prompts for policy and teacher, unless `discriminator.warmup.data` names pairs."""
    # Published pairs are not read with --shrink, so a teacher is needed in any case.
    teacher: Annotated[Teacher | None, oracle(null=True)] = None
    """Teacher that answers the prompts."""
    discriminator: Discriminator = MoEDiscriminator()
    """The discriminator and, under `warmup`, its training. Settings of adversarial training are unused."""
    max_prompt_tokens: PromptTokens = 2048
    """Maximum tokens of a prompt with its image; longer rows are refused."""
    max_response_tokens: ResponseTokens = 6144
    """Maximum tokens of the policy's responses."""
    batch_size: BatchSize = 16
    """Responses generated at once."""
    launch: Launch = LaunchSection()
    """Processes, nodes and sharding."""


class RLRecipe(RolloutStage):
    """Reinforcement learning with verifiable rewards (`prism rl`)."""

    algorithm: Algorithm = GRPO()
    """Policy-gradient algorithm."""
    rewards: RewardsSection = RewardsSection()
    """Weights of the rewards."""
    max_steps: PositiveInt | None = 1500
    prompts_per_step: PositiveInt = 32
    max_response_tokens: PositiveInt = 8192


class SamplingStage(Section):
    """Keys shared by eval, drift and curation: responses sampled from finished runs."""

    data: TestRows = None
    """Held-out rows."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature."""
    max_response_tokens: ResponseTokens = 8192
    """Maximum tokens of a response."""
    batch_size: BatchSize = 8
    """Responses generated at once by transformers; vLLM schedules its own."""
    generation: Backend = None
    """Generation backend; null takes vLLM where it is installed and supports the model, else transformers."""
    output: UserPath | None = None
    """Run folder; null gives runs/<stage>."""
    seed: NonNegativeInt = 0
    """Random seed of the stage."""


class EvalRecipe(SamplingStage):
    """Evaluation of one or several runs on the same questions (`prism eval`)."""

    runs: tuple[UserPath, ...] = Field(default=(), strict=False)
    """Run folders (or `RUN@step`) to evaluate; paired differences are computed between all of them."""
    benchmarks: Annotated[BenchmarksSection | None, instead(None)] = None
    """Published benchmarks through lmms-eval, in addition to `data` or without it."""
    teacher: Annotated[Teacher | None, oracle()] = None
    """Teacher for the likelihood of its answers under the policy; null leaves that out."""
    llm_judge: Annotated[LLMJudge | None, instead(None)] = None
    """LLM that decides whether a free-text answer means the same as an accepted one, where the rules find it wrong. An
    answer without a verdict is excluded and counted. Null: the rules alone decide."""
    samples: Annotated[NonNegativeInt, at_most(2)] = 4
    """Sampled responses per question, at `temperature`; 0 for greedy only."""
    greedy: bool = True
    """Whether each question is also answered greedily."""
    attribution: Literal["greedy", "all"] | None = None
    """Find the cause of wrong answers (docs/evaluation.md): of the greedy ones, or of all. Null: don't."""


class CollectRecipe(Section):
    """Demonstrations from a teacher, or pairs for the discriminator's warm-up (`prism collect`)."""

    data: TrainingRows = None
    """Prompts."""
    teacher: Annotated[
        OpenAITeacher | EmbeddedTeacher, Field(discriminator="type"), type_if_absent("openai"), oracle()
    ] = OpenAITeacher()
    """Teacher that answers the prompts."""
    response: ResponseSection = ResponseSection()
    """Parts that the answers must have."""
    from_: UserPath | None = Field(default=None, alias="from")
    """Run whose policy answers the same prompts: the result is pairs for the discriminator's warm-up. Null collects
    demonstrations."""
    samples: Annotated[PositiveInt, at_most(2)] = 1
    """Teacher answers per prompt."""
    keep: Literal["right", "well_formed"] = "right"
    """`right` keeps well-formed answers that the verifier accepts, where the row has a reference answer; `well_formed`
    keeps all well-formed ones."""
    max_response_tokens: ResponseTokens = 6144
    """Maximum tokens of the policy's responses, for pairs."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the policy, for pairs."""
    batch: Annotated[bool, instead(False)] = False
    """Use the provider's batch endpoint: cheaper, answered within a day."""
    output: UserPath | None = None
    """Folder of the collection; null gives runs/collect."""
    seed: NonNegativeInt = 0
    """Random seed of the policy's sampling."""


class CurateRecipe(SamplingStage):
    """Prompts selected by how often a policy solves them (`prism data curate`)."""

    from_: UserPath | None = Field(default=None, alias="from")
    """Run whose policy is sampled."""
    data: TrainingRows = None
    """Rows with reference answers."""
    samples: Annotated[PositiveInt, at_most(2)] = 8
    """Responses per prompt."""
    keep: Literal["band", "hard"] = "band"
    """`band` keeps prompts whose pass rate lies in `band`, for RL; `hard` those never solved, for a teacher."""
    band: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.2, 0.8)
    """Lowest and highest pass rate to keep, both included."""

    @property
    def kept_counts(self) -> list[int]:
        """Numbers of right samples with which a prompt is kept."""
        low, high = (0.0, 0.0) if self.keep == "hard" else self.band
        return [right for right in range(self.samples + 1) if low <= right / self.samples <= high]

    @model_validator(mode="after")
    def _band_holds_a_rate(self):
        low, high = self.band
        if low > high:
            raise ValueError("band: the first number must not be above the second")
        if not self.kept_counts:
            raise ValueError(
                f"band: no pass rate of {self.samples} samples (steps of 1/{self.samples}) is in {low:g} to {high:g}; "
                "take more samples or widen it"
            )
        return self


class DriftRecipe(SamplingStage):
    """Distance of one or several runs from the teacher, for each part, from texts alone (`prism drift`)."""

    runs: tuple[UserPath, ...] = Field(default=(), strict=False)
    """Run folders (or `RUN@step`) to measure, all on the same prompts."""
    data: TestRows = None
    """Held-out prompts, at least ten; hundreds give a narrow interval."""
    teacher: Annotated[Teacher, oracle()] = OpenAITeacher()
    """Teacher whose answers they are compared with."""
    samples: Annotated[PositiveInt, at_most(2)] = 4
    """Responses per prompt and run."""
    max_response_tokens: ResponseTokens = 6144


RECIPES: dict[str, type[Section]] = {
    "sft": SFTRecipe,
    "align": AlignRecipe,
    "rl": RLRecipe,
    "eval": EvalRecipe,
    "drift": DriftRecipe,
    "collect": CollectRecipe,
    "curate": CurateRecipe,
    "warmup": WarmupRecipe,
    "run": PipelineRecipe,
    "compare": StudyRecipe,
}

Recipe = (
    SFTRecipe
    | AlignRecipe
    | RLRecipe
    | EvalRecipe
    | DriftRecipe
    | CollectRecipe
    | CurateRecipe
    | WarmupRecipe
    | PipelineRecipe
    | StudyRecipe
)
