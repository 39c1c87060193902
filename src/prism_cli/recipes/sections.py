"""The sections that say what is trained on what: model, response, image budget, data."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from prism_cli.recipes.section import Fraction, ScaledDown, Section, UserPath, instead, type_if_absent
from prism_cli.responses import Grammar, Part


class LoRA(Section):
    """Train low-rank adapters instead of all weights (PEFT)."""

    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """Scale of the adapters (alpha / rank)."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' input."""
    vision: bool = False
    """Adapters on the vision tower's linear layers too. They are merged all the same; vLLM can't serve them apart."""
    bits: Annotated[Literal[4] | None, instead(None)] = None
    """4 holds the language model's frozen weights in 4 bits (QLoRA): an NVIDIA GPU and `pip install bitsandbytes`. The
    final model is the adapters in the whole weights, not in the rounded ones. Null keeps the weights as they are."""


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


Model = Annotated[PretrainedModel | TinyModel, Field(discriminator="type"), type_if_absent("pretrained")]


class PartSection(Section):
    """One part of a response, scored on its own."""

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
    """Rows from a local file or folder, or from the hub."""

    type: Literal["file"] = "file"
    path: UserPath
    """A JSONL, JSON, CSV or Parquet file, a folder of them, or a hub id: `name`, `name@split`, `name:config`, or
    `name/file.parquet` for one file of it."""
    format: Literal["auto", "conversational", "sharegpt", "verl", "pairs", "plain"] = "auto"
    """How a row is written; `auto` tells from its columns."""
    limit: PositiveInt | None = None
    """Read at most this many rows."""
    allow_urls: tuple[str, ...] = Field(default=(), strict=False)
    """Hosts from which pictures may be fetched; none by default. What is read is sent to the teacher."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do about rows that can't be used: stop and name them all, or leave them out and name them."""
    stream: bool = False
    """SFT only: check and use rows as they flow instead of reading all of them first."""


class _Share(Section):
    weight: PositiveFloat | None = None
    """Its share of the mixture, relative to the other weights."""
    count: PositiveInt | None = None
    """How many of its rows an epoch has; all or none of the sources have one."""


class FileSource(FileData, _Share):
    """Rows from a file, as one source of a mixture."""


class WorldSource(WorldData, _Share):
    """Rows from a picture world, as one source of a mixture."""


MixtureSource = Annotated[WorldSource | FileSource, Field(discriminator="type"), type_if_absent("file")]


class MixtureData(Section):
    """Several sources, interleaved."""

    type: Literal["mixture"]
    sources: dict[str, MixtureSource] = Field(min_length=1)
    """Name → source, each with a `weight` or each with a `count`. By weight an epoch lasts until every row of every
    source was seen; smaller sources are repeated."""

    @model_validator(mode="after")
    def _one_measure(self):
        weighted = [source.weight is not None for source in self.sources.values()]
        counted = [source.count is not None for source in self.sources.values()]
        if not (all(weighted) and not any(counted)) and not (all(counted) and not any(weighted)):
            raise ValueError("give every source a weight, or every source a count")
        return self


Data = Annotated[WorldData | FileData | MixtureData, Field(discriminator="type"), type_if_absent("file")]


def world_rows(split: Literal["train", "tune", "test"], size: int, null: bool = True) -> ScaledDown:
    """Rows of the picture world in place of any others; a mixture keeps its sources and their shares."""

    def rows(data: WorldData | FileData | MixtureData | None) -> WorldData | MixtureData:
        if isinstance(data, MixtureData):
            shares = {name: (one.weight, one.count and min(one.count, size)) for name, one in data.sources.items()}
            sources: dict[str, MixtureSource] = {
                name: WorldSource(type="world", split=split, size=size, seed=seed, weight=weight, count=count)
                for seed, (name, (weight, count)) in enumerate(shares.items())
            }
            return MixtureData(type="mixture", sources=sources)
        seed = data.seed if isinstance(data, WorldData) else 0
        return WorldData(type="world", split=split, size=size, seed=seed)

    return ScaledDown(rows, null)
