"""The policy: a vision-language model with its processor, response grammar and instruction, loaded and saved as one.

The grammar, the instruction and the pixel budget are one setting for all stages, so they travel with the weights:
`response.json` beside the model holds the first two, the processor's own file the third.
"""

import gc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.responses import Grammar, read_settings
from prism_cli.runs import write_atomically

SMALL = 10_000_000
PLACEHOLDER_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


@dataclass(frozen=True)
class Policy:
    """A model and everything that decides what it is shown and how its text is read.

    Attributes:
        model: A transformers model that reads images and text.
        processor: Its processor, with the pixel budget set and left padding.
        grammar: The parts of a response.
        instruction: System prompt, or None.
    """

    # Any: what the Auto classes return has more than their annotations say.
    model: Any
    processor: Any
    grammar: Grammar
    instruction: str | None

    def __post_init__(self):
        fit_threads(self.model)

    def with_model(self, model: Any) -> "Policy":
        """The same conventions around other weights."""
        return replace(self, model=model)

    def save(self, folder: Path) -> None:
        """Writes a folder that `from_pretrained` and `load_policy` open."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.save_response_settings(folder)

    def save_response_settings(self, folder: Path) -> None:
        """Writes response.json beside weights that something else saved."""
        write_atomically(folder / "response.json", json.dumps(self._response_settings(), indent=2))

    def _response_settings(self) -> dict[str, Any]:
        parts = {name: {"tags": list(part.tags), "weight": part.weight} for name, part in self.grammar.parts.items()}
        return {"parts": parts, "answer": self.grammar.answer_tag, "instruction": self.instruction}


def load_policy(folder: Path) -> Policy:
    """Opens a policy that an earlier stage saved.

    Raises:
        CheckpointError: a file is missing or unreadable.
    """
    try:
        settings = read_settings(json.loads((folder / "response.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'response.json'} can't be read: {error}", "point --from at a finished run"
        ) from None
    model, processor = load_pretrained(str(folder))
    return Policy(model, processor, *settings)


def load_pretrained(
    path: str, revision: str | None = None, dtype: str = "auto", attention: str = "sdpa"
) -> tuple[Any, Any]:
    """Loads a model and its processor from a folder or the hub, never running code that comes with them.

    Raises:
        RecipeError: nothing loadable there.
    """
    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            path, revision=revision, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"can't load a vision-language model from {path!r}: {reason}", "check model.path or --model"
        ) from None
    processor.tokenizer.padding_side = "left"
    return model, processor


def set_pixel_budget(processor: ProcessorMixin, min_pixels: int, max_pixels: int) -> None:
    """Sets how many pixels an image has after resizing; saved with the processor."""
    for images in (processor.image_processor, getattr(processor, "video_processor", None)):
        if images is not None:
            images.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}


def placeholder_ids(processor: ProcessorMixin) -> list[int]:
    """Tokens that generation must never emit: each stands for an image or video the next forward would look for."""
    vocabulary = processor.tokenizer.get_vocab()
    return [vocabulary[token] for token in PLACEHOLDER_TOKENS if token in vocabulary]


def fit_threads(model: PreTrainedModel) -> None:
    """Keeps a small model on one CPU thread: threads that wait for each other cost more than such matrices take.

    On shared cores a forward pass of 0.2 s was seen to take 5.6 s with two threads.
    """
    if model.num_parameters() < SMALL:
        torch.set_num_threads(1)


def free_memory() -> None:
    """Gives back what a finished trainer held: trainers are reference cycles, and the device keeps what they freed."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")
