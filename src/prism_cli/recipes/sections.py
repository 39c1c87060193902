"""The sections recipes are made of: model, response, image budget, data, teacher, discriminator, advantage.

Every default is the paper's value where the paper gives one, so a line in a recipe file is a decision. The string under
a field is its documentation. Alternatives are unions on `type`, so that a wrong combination can't be written.
"""

import os.path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from prism_cli.responses import Grammar, Part

Fraction = Annotated[float, Field(ge=0, le=1)]


UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """Strict and frozen: an unknown key, or a string where a number belongs, is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _type_if_absent(default: str) -> BeforeValidator:
    """A section of a union may leave `type` out when it is the usual one."""

    def fill(section: Any) -> Any:
        return {"type": default, **section} if isinstance(section, dict) else section

    return BeforeValidator(fill)


# Model ---------------------------------------------------------------------------------------------------------------


class LoRA(Section):
    """Train low-rank adapters instead of all weights (PEFT)."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """Scale of the adapters (alpha / rank)."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' input."""


class PretrainedModel(Section):
    """A model from a folder or the hub."""

    type: Literal["pretrained"] = "pretrained"
    path: UserPath
    """Folder or hub id, e.g. Qwen/Qwen3-VL-4B-Instruct."""
    revision: str | None = None
    """Hub revision."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Type of the weights. On a GPU the policy's arithmetic is bfloat16 either way; weights in bfloat16 lose steps of
    1e-6 to rounding. `auto` takes the checkpoint's."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation."""


class TinyModel(Section):
    """A tiny Qwen3-VL, randomly initialised, with a word-level tokenizer made of its world's vocabulary."""

    type: Literal["tiny"]
    world: Literal["shapes"] = "shapes"
    """The picture world whose words it knows."""
    hidden: PositiveInt = 96
    """Width of the text tower."""
    layers: PositiveInt = 3
    """Layers of the text tower."""
    vision_hidden: PositiveInt = 64
    """Width of the vision tower."""
    vision_layers: PositiveInt = 2
    """Layers of the vision tower."""


Model = Annotated[PretrainedModel | TinyModel, Field(discriminator="type"), _type_if_absent("pretrained")]


# Response and image budget -------------------------------------------------------------------------------------------


class PartSection(Section):
    """One part of a response, judged on its own."""

    tags: tuple[str, ...] = Field(default=(), strict=False)
    """The tagged blocks it is made of, in order; none means the whole text."""
    weight: NonNegativeFloat = 1.0
    """Its share α in the advantage."""


class ResponseSection(Section):
    """The declared parts of a response and the instruction that asks for them; the same in every stage."""

    parts: dict[str, PartSection] = Field(
        default={
            "perception": PartSection(tags=("caption",), weight=0.5),
            "reasoning": PartSection(tags=("think", "answer"), weight=0.5),
        }
    )
    """Part name → its tags and weight."""
    answer: str | None = "answer"
    """The tag in which the final answer stands; null when the whole text is the answer."""
    instruction: str | None = "from parts"
    """System prompt: `from parts` writes it from the parts, null sends none, any other text is sent as it is."""

    @model_validator(mode="after")
    def _is_a_grammar(self):
        Grammar({name: Part(part.tags, part.weight) for name, part in self.parts.items()}, self.answer)
        return self


class ImageSection(Section):
    """The image budget, in pixels after resizing; the same in every stage, the generator and the export."""

    min_pixels: PositiveInt = 65536
    """Smaller images are scaled up to this many pixels."""
    max_pixels: PositiveInt = 1048576
    """Larger images are scaled down to this many pixels."""


# Data ----------------------------------------------------------------------------------------------------------------


class WorldData(Section):
    """Rows drawn from a synthetic picture world."""

    type: Literal["world"]
    world: Literal["shapes"] = "shapes"
    """The world's name."""
    split: Literal["train", "tune", "test"] = "train"
    """Scenes never overlap between splits."""
    size: PositiveInt
    """How many rows."""
    seed: NonNegativeInt = 0
    """Which rows: same seed, same rows."""


class FileData(Section):
    """Rows from a local JSONL, JSON, CSV or Parquet file, or from the hub."""

    type: Literal["file"] = "file"
    path: UserPath
    """File or hub id. A row has `image` or `images` (paths inside the file's folder, or bytes) and either `messages`,
    or `prompt` (and `completion`), or `question` (and `response`); for RL `answer` or `answers`; for the dataset
    teacher `teacher_response`."""
    split: str = "train"
    """Split of a hub data set."""
    limit: PositiveInt | None = None
    """Read at most this many rows."""


Data = Annotated[WorldData | FileData, Field(discriminator="type"), _type_if_absent("file")]


# Teacher -------------------------------------------------------------------------------------------------------------


def _plain_url(url: str) -> str:
    """An http(s) URL without anything secret in it: recipes are copied into run folders and model cards."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL that begins with http:// or https://")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL with a user, password or query; put the key into the variable api_key_env names")
    return url


class OpenAITeacher(Section):
    """A teacher behind an OpenAI-compatible endpoint. Answers are kept: nothing is asked twice."""

    type: Literal["openai"] = "openai"
    endpoint: Annotated[str, AfterValidator(_plain_url)] | None = None
    """Base URL, e.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1; it can't hold a key."""
    model: str | None = None
    """Model name the endpoint knows; null asks the endpoint when it serves exactly one."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key (never the key)."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of the teacher."""
    max_tokens: PositiveInt = 8192
    """Longest teacher answer."""
    concurrency: PositiveInt = 16
    """Requests in flight at most."""
    store: UserPath = "runs/teacher_answers.sqlite"
    """Where answers are kept, shared by all runs: nothing is asked twice."""
    max_calls: PositiveInt | None = None
    """Stop (exit code 3) before asking more often than this; null for no cap."""


class DatasetTeacher(Section):
    """Teacher answers from the data's own `teacher_response` column: alignment without an endpoint."""

    type: Literal["dataset"]


class EmbeddedTeacher(Section):
    """A picture world's oracle, served over HTTP on 127.0.0.1 while the stage runs."""

    type: Literal["embedded"]
    world: Literal["shapes"] = "shapes"
    """The world whose pictures it can read."""
    variant: Literal["exact", "weak_perception", "weak_reasoning", "text_only"] = "exact"
    """How good it is: faultless, sees badly, reasons badly, or never sees the picture."""


Teacher = Annotated[
    OpenAITeacher | DatasetTeacher | EmbeddedTeacher, Field(discriminator="type"), _type_if_absent("openai")
]


# Alignment -----------------------------------------------------------------------------------------------------------


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
    MoEDiscriminator | DenseDiscriminator | TextOnlyDiscriminator, Field(discriminator="type"), _type_if_absent("moe")
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


# Reinforcement -------------------------------------------------------------------------------------------------------


class RewardsSection(Section):
    """reward = accuracy · w + format · w; a malformed response gets 0 in all."""

    accuracy: NonNegativeFloat = 0.8
    """Weight of the verified final answer."""
    format: NonNegativeFloat = 0.2
    """Weight of being well-formed."""


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
    overlong_buffer: NonNegativeInt = 4096
    """The last tokens before the limit over which a length penalty grows to −1."""


class GSPO(Section):
    """Sequence-level ratio."""

    type: Literal["gspo"]
    clip_low: PositiveFloat = 3e-4
    """Ratio clip below 1."""
    clip_high: PositiveFloat = 4e-4
    """Ratio clip above 1."""


Algorithm = Annotated[GRPO | DAPO | GSPO, Field(discriminator="type"), _type_if_absent("grpo")]


# Training ------------------------------------------------------------------------------------------------------------


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

    every: PositiveInt = 50
    """Save each time this many steps are done."""
    keep: PositiveInt = 2
    """Newest checkpoints to keep, beside the best."""
    evaluate_every: PositiveInt | None = None
    """Evaluate on `eval_data` each time this many steps are done; null never."""
    best_by: str | None = None
    """A metric of the held-out evaluation (`loss`: lower is better, any other: higher); the best checkpoint becomes the
    stage's model. Null: the last one does."""
