"""What a user may write for each stage. Field names are the CLI's override keys (`key.path=value`)."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from prism_cli.recipes.alignment import AdvantageSection, Discriminator, MoEDiscriminator, StopSection
from prism_cli.recipes.benchmarks import BenchmarksSection
from prism_cli.recipes.generation import Generation
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.pipelines import PipelineRecipe, StudyRecipe
from prism_cli.recipes.section import Fraction, Section, UserPath, type_if_absent
from prism_cli.recipes.sections import Data, ImageSection, LoRA, Model, ResponseSection
from prism_cli.recipes.teachers import EmbeddedTeacher, LLMJudge, OpenAITeacher, Teacher
from prism_cli.recipes.training import (
    GRPO,
    Algorithm,
    CheckpointSection,
    OptimizerSection,
    RewardsSection,
    SFTOptimizerSection,
)


class Stage(Section):
    """What every stage has."""

    model: Model | None = None
    """The model to start from; null when `from` names a run."""
    from_: UserPath | None = Field(default=None, alias="from")
    """A run folder (or `RUN@step`) whose final model, processor, parts and image budget this stage starts from."""
    response: ResponseSection | None = None
    """Parts and instruction; null takes those of the run it starts from, else the default grammar."""
    image: ImageSection | None = None
    """Image budget; null takes that of the run it starts from, else the default."""
    output: UserPath | None = None
    """Run folder; null gives runs/<stage>."""
    seed: NonNegativeInt = 0
    """Seed of everything random in the stage."""

    @model_validator(mode="after")
    def _one_start(self):
        if self.model is not None and self.from_ is not None:
            raise ValueError("`model` and `from` both say where to start; keep one")
        if self.from_ is not None and (self.response is not None or self.image is not None):
            raise ValueError("`response` and `image` come with the run in `from`; they are one setting in all stages")
        return self


class TrainingStage(Stage):
    """What SFT, align and RL share."""

    data: Data | None = None
    """Training rows."""
    eval_data: Data | None = None
    """Held-out rows for the evaluation during training."""
    optimizer: OptimizerSection = OptimizerSection()
    """AdamW and its schedule."""
    max_steps: PositiveInt | None = None
    """Optimiser steps; null runs the data `epochs` times."""
    epochs: PositiveFloat = 1.0
    """Passes over the data when `max_steps` is null."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When to evaluate and save."""
    lora: LoRA | None = None
    """Train adapters instead of all weights."""
    log_every: PositiveInt = 1
    """Steps between lines of metrics.jsonl."""
    launch: LaunchSection = LaunchSection()
    """Processes, nodes and sharding."""
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Further options of TRL's config (SFTConfig or GRPOConfig), by their own names."""


class SFTRecipe(TrainingStage):
    """Supervised fine-tuning on demonstrations (`prism sft`)."""

    teacher: Teacher | None = None
    """Null: demonstrations stand in the data. Else the data's prompts are answered by this teacher (kept answers are
    not asked again), and its answers are the demonstrations."""
    optimizer: SFTOptimizerSection = SFTOptimizerSection()
    batch_size: PositiveInt = 2
    """Rows a device and forward pass."""
    gradient_accumulation: PositiveInt = 1
    """Forward passes a step."""
    max_tokens: PositiveInt = 8192
    """Longest row, prompt with image and response; a longer row is refused, never cut."""


class RolloutStage(TrainingStage):
    """What align and RL share: rollouts of the policy on prompts."""

    prompts_per_step: PositiveInt
    """Prompts an optimiser step."""
    rollouts: Annotated[int, Field(ge=2)] = 16
    """Rollouts a prompt."""
    micro_batch: PositiveInt = 4
    """Rollouts a forward pass of the policy's update, per process; bounds memory."""
    max_prompt_tokens: PositiveInt = 2048
    """Longest prompt with image; longer rows are refused."""
    max_response_tokens: PositiveInt
    """Longest rollout."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the rollouts."""
    generation: Generation | None = None
    """What generates the rollouts; null takes vLLM where it is installed and can serve the model, else transformers."""
    kl: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the starting policy."""
    rollouts_every: PositiveInt | None = 25
    """Steps between rollouts that are kept with their pictures for the report; null keeps none."""


class AlignRecipe(RolloutStage):
    """Alignment to a black-box teacher's texts (`prism align`)."""

    teacher: Teacher = OpenAITeacher()
    """Who answers the prompts."""
    discriminator: Discriminator = MoEDiscriminator()
    """Scores the parts of a response."""
    advantage: AdvantageSection = AdvantageSection()
    """From scores to advantages."""
    stop: StopSection | None = None
    """When to end before `max_steps`; null trains all steps."""
    max_steps: PositiveInt | None = 500
    prompts_per_step: PositiveInt = 4
    max_response_tokens: PositiveInt = 6144
    clip: PositiveFloat = 0.2
    """Ratio clip around 1."""
    dual_clip: PositiveFloat | None = 3.0
    """Upper bound on the ratio for negative advantages."""


class WarmupRecipe(Stage):
    """A discriminator warmed up on pairs of teacher and policy, for later align runs (`prism discriminator warmup`)."""

    data: Data | None = None
    """The prompts that policy and teacher are asked, where `discriminator.warmup.data` names no pairs."""
    teacher: Teacher | None = None
    """Who answers them."""
    discriminator: Discriminator = MoEDiscriminator()
    """What is trained, and under `warmup` how; what concerns adversarial training is unused."""
    max_prompt_tokens: PositiveInt = 2048
    """Longest prompt with image; longer rows are refused."""
    max_response_tokens: PositiveInt = 6144
    """Longest response of the policy."""
    batch_size: PositiveInt = 16
    """Responses generated at once."""
    launch: LaunchSection = LaunchSection()
    """Processes, nodes and sharding."""


class RLRecipe(RolloutStage):
    """Reinforcement with verifiable rewards (`prism rl`)."""

    algorithm: Algorithm = GRPO()
    """Which policy-gradient preset."""
    rewards: RewardsSection = RewardsSection()
    """Weights of the rewards."""
    max_steps: PositiveInt | None = 1500
    prompts_per_step: PositiveInt = 32
    max_response_tokens: PositiveInt = 8192


class EvalRecipe(Section):
    """Sampled evaluation of one or several runs on the same questions (`prism eval`)."""

    runs: tuple[UserPath, ...] = Field(default=(), strict=False)
    """Run folders (or `RUN@step`) to evaluate; paired differences are taken between all of them."""
    data: Data | None = None
    """Held-out rows."""
    benchmarks: BenchmarksSection | None = None
    """Published benchmarks through lmms-eval, beside `data` or in its place."""
    teacher: Teacher | None = None
    """Who to measure the distance to; null measures no distance."""
    llm_judge: LLMJudge | None = None
    """Asked where the rules find a free-text answer wrong: does it mean the same? An answer it gives no verdict on is
    left out and counted. Null: the rules alone decide."""
    samples: NonNegativeInt = 4
    """Samples a question at `temperature`; 0 for greedy only."""
    greedy: bool = True
    """Also answer each question greedily."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature."""
    max_response_tokens: PositiveInt = 8192
    """Longest response."""
    batch_size: PositiveInt = 8
    """Responses generated at once, by transformers."""
    generation: Generation | None = None
    """What generates; null takes vLLM where it is installed and can serve the model, else transformers."""
    attribution: Literal["greedy", "all"] | None = None
    """Find why answers are wrong (docs/evaluation.md): of greedy ones, or of sampled ones too. Null: don't."""
    output: UserPath | None = None
    """Run folder; null gives runs/eval."""
    seed: NonNegativeInt = 0
    """Seed of the sampling."""


class CollectRecipe(Section):
    """Demonstrations distilled from a teacher, or pairs for the discriminator's warm-up (`prism collect`)."""

    data: Data | None = None
    """The prompts."""
    teacher: Annotated[OpenAITeacher | EmbeddedTeacher, Field(discriminator="type"), type_if_absent("openai")] = (
        OpenAITeacher()
    )
    """Who answers them."""
    response: ResponseSection = ResponseSection()
    """The parts the answers must have."""
    from_: UserPath | None = Field(default=None, alias="from")
    """A run whose policy is sampled beside the teacher: the result is pairs to warm a discriminator up on. Null
    collects demonstrations."""
    samples: PositiveInt = 1
    """Teacher answers a prompt."""
    keep: Literal["right", "well_formed"] = "right"
    """`right`: well-formed and right by the verifier, for rows that have an answer to verify against."""
    max_response_tokens: PositiveInt = 6144
    """Longest response of the policy, for pairs."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the policy, for pairs."""
    batch: bool = False
    """Ask through the provider's batch endpoint: cheaper, answered within a day."""
    output: UserPath | None = None
    """Folder of the collection; null gives runs/collect."""
    seed: NonNegativeInt = 0
    """Seed of the policy's sampling."""


class CurateRecipe(Section):
    """Prompts chosen by how often a policy solves them (`prism data curate`)."""

    from_: UserPath | None = Field(default=None, alias="from")
    """The run whose policy is sampled."""
    data: Data | None = None
    """Rows with answers to verify against."""
    samples: PositiveInt = 8
    """Responses a prompt."""
    keep: Literal["band", "hard"] = "band"
    """`band`: prompts whose pass rate lies in `band`, for RL. `hard`: those never solved, to put to a teacher."""
    band: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.2, 0.8)
    """Lowest and highest pass rate that is kept, both included."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature."""
    max_response_tokens: PositiveInt = 8192
    """Longest response."""
    batch_size: PositiveInt = 8
    """Responses generated at once, by transformers."""
    generation: Generation | None = None
    """What generates; null takes vLLM where it is installed and can serve the model, else transformers."""
    output: UserPath | None = None
    """Folder of the set; null gives runs/curate."""
    seed: NonNegativeInt = 0
    """Seed of the sampling."""

    @property
    def kept_counts(self) -> list[int]:
        """How many of a kept prompt's samples may be right."""
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


class DriftRecipe(Section):
    """How far one or several runs are from the teacher, part by part, from texts alone (`prism drift`)."""

    runs: tuple[UserPath, ...] = Field(default=(), strict=False)
    """Run folders (or `RUN@step`) to measure, all on the same prompts."""
    data: Data | None = None
    """Held-out prompts, ten at least; hundreds give a narrow interval."""
    teacher: Teacher = OpenAITeacher()
    """Whose answers they are compared with."""
    samples: PositiveInt = 4
    """Responses a prompt and run."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature."""
    max_response_tokens: PositiveInt = 6144
    """Longest response."""
    batch_size: PositiveInt = 8
    """Responses generated at once, by transformers."""
    generation: Generation | None = None
    """What generates; null takes vLLM where it is installed and can serve the model, else transformers."""
    output: UserPath | None = None
    """Run folder; null gives runs/drift."""
    seed: NonNegativeInt = 0
    """Seed of sampling, folds and resampling."""


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
