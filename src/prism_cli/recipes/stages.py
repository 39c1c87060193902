"""What a user may write for each stage. Field names are the CLI's override keys (`key.path=value`)."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from prism_cli.recipes.alignment import AdvantageSection, Discriminator, MoEDiscriminator
from prism_cli.recipes.section import Section, UserPath
from prism_cli.recipes.sections import Data, ImageSection, LoRA, Model, ResponseSection
from prism_cli.recipes.teachers import OpenAITeacher, Teacher
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
    kl: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the starting policy."""


class AlignRecipe(RolloutStage):
    """Alignment to a black-box teacher's texts (`prism align`)."""

    teacher: Teacher = OpenAITeacher()
    """Who answers the prompts."""
    discriminator: Discriminator = MoEDiscriminator()
    """The judge of parts."""
    advantage: AdvantageSection = AdvantageSection()
    """From scores to advantages."""
    max_steps: PositiveInt | None = 500
    prompts_per_step: PositiveInt = 4
    max_response_tokens: PositiveInt = 6144
    clip: PositiveFloat = 0.2
    """Ratio clip around 1."""
    dual_clip: PositiveFloat | None = 3.0
    """Upper bound on the ratio for negative advantages."""


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
    teacher: Teacher | None = None
    """Who to measure the distance to; null measures no distance."""
    samples: NonNegativeInt = 4
    """Samples a question at `temperature`; 0 for greedy only."""
    greedy: bool = True
    """Also answer each question greedily."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature."""
    max_response_tokens: PositiveInt = 8192
    """Longest response."""
    batch_size: PositiveInt = 8
    """Responses generated at once."""
    output: UserPath | None = None
    """Run folder; null gives runs/eval."""
    seed: NonNegativeInt = 0
    """Seed of the sampling."""


class PipelineStep(Section):
    """One step of a pipeline: a stage's recipe and what to change in it."""

    stage: Literal["sft", "align", "rl", "eval"]
    """Which command."""
    recipe: str
    """Recipe file, relative to the pipeline's own."""
    id: str | None = None
    """Name of the step and its folder; null takes the stage's name. Unique."""
    from_: str | None = Field(default=None, alias="from")
    """The step it starts from; null takes the last training step before it."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values that replace the recipe's, by dotted key."""


class PipelineRecipe(Section):
    """Any list of stages, in any order, as one resumable run (`prism run`)."""

    name: str
    """The run's folder is runs/<name>, a step's is runs/<name>/<step id>."""
    seed: NonNegativeInt | None = None
    """Replaces the seed of every step."""
    steps: Annotated[tuple[PipelineStep, ...], Field(min_length=1, strict=False)]
    """The steps in order."""
    output: UserPath | None = None
    """Run folder; null gives runs/<name>."""

    @model_validator(mode="after")
    def _ids_are_unique(self):
        ids = [step.id or step.stage for step in self.steps]
        if repeated := {i for i in ids if ids.count(i) > 1}:
            raise ValueError(f"step ids must be unique; give `id` to these: {', '.join(sorted(repeated))}")
        for position, step in enumerate(self.steps):
            if step.from_ is not None and step.from_ not in ids[:position]:
                raise ValueError(f"step {ids[position]!r} starts from {step.from_!r}, which is no earlier step")
        return self


RECIPES: dict[str, type[Section]] = {
    "sft": SFTRecipe,
    "align": AlignRecipe,
    "rl": RLRecipe,
    "eval": EvalRecipe,
    "run": PipelineRecipe,
}
