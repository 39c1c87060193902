"""The policy: a vision-language model with its processor, response grammar and instruction, loaded and saved as one.

The grammar, the instruction and the pixel budget are one setting for all stages, so they travel with the weights:
`response.json` beside the model holds the first two, the processor's own file the third.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from prism_cli.adapters import nf4_config
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.responses import Grammar, ResponseSettings, read_settings
from prism_cli.runs.files import write_atomically

SMALL = 10_000_000
PLACEHOLDER_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
# What processors and tokenizers of other families call theirs.
PLACEHOLDER_NAMES = (
    *("image_token", "video_token", "boi_token", "eoi_token", "start_image_token", "end_image_token"),
    *("context_image_token", "fake_image_token", "global_image_token"),
)


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
        disable_cudnn_attention()

    @property
    def settings(self) -> ResponseSettings:
        """Its grammar and instruction."""
        return ResponseSettings(self.grammar, self.instruction)

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


def load_policy(folder: Path, dtype: str = "auto", attention: str = "sdpa", four_bits: bool = False) -> Policy:
    """Opens a policy that an earlier stage saved.

    Args:
        folder: Its model.
        dtype: Type of the weights; `auto` takes the saved one.
        attention: Attention implementation.
        four_bits: Hold the weights of the linear layers in 4 bits, see `load_pretrained`.

    Raises:
        CheckpointError: a file is missing or unreadable.
    """
    try:
        settings = read_settings(json.loads((folder / "response.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'response.json'} can't be read: {error}", "point --from at a finished run"
        ) from None
    model, processor = load_pretrained(str(folder), dtype=dtype, attention=attention, four_bits=four_bits)
    return Policy(model, processor, *settings)


def load_pretrained(
    path: str,
    revision: str | None = None,
    dtype: str = "auto",
    attention: str = "sdpa",
    four_bits: bool = False,
) -> tuple[Any, Any]:
    """Loads a model and its processor from a folder or the hub, never running code that comes with them.

    Args:
        path: Folder or hub id.
        revision: Of the hub.
        dtype: Type of the weights; `auto` takes the saved one.
        attention: Attention implementation.
        four_bits: Hold the language model's linear layers in 4 bits (bitsandbytes, NF4), for adapters on top.

    Raises:
        RecipeError: nothing loadable there, or 4 bits or an attention that can't be computed with.
    """
    weights = {"quantization_config": nf4_config()} if four_bits else {}
    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            path, revision=revision, dtype=dtype, attn_implementation=attention, trust_remote_code=False, **weights
        )
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"attention {attention} can't be had here: {reason}", "leave `attention` out") from None
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"can't load a vision-language model from {path!r}: {reason}", "check model.path or --model"
        ) from None
    processor.tokenizer.padding_side = "left"
    return model, processor


# Reading and generating -----------------------------------------------------------------------------------------------


def set_pixel_budget(processor: ProcessorMixin, min_pixels: int, max_pixels: int) -> bool:
    """Sets how many pixels an image has after resizing; saved with the processor.

    Returns:
        Whether it could: families that scale every picture to one size have no budget, and keep their size.
    """
    if not hasattr(processor.image_processor, "merge_size"):  # of those that cut pictures of any size into patches
        return False
    for images in (processor.image_processor, getattr(processor, "video_processor", None)):
        if images is not None:
            images.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return True


def placeholder_ids(processor: ProcessorMixin) -> list[int]:
    """Tokens that generation must never emit: each stands for an image or video the next forward would look for."""
    vocabulary = processor.tokenizer.get_vocab()
    named = [getattr(holder, name, None) for name in PLACEHOLDER_NAMES for holder in (processor, processor.tokenizer)]
    tokens = dict.fromkeys([*PLACEHOLDER_TOKENS, *(token for token in named if isinstance(token, str))])
    return [vocabulary[token] for token in tokens if token in vocabulary]


def fit_threads(model: PreTrainedModel) -> None:
    """Keeps a small model on one CPU thread: threads that wait for each other cost more than such matrices take.

    On shared cores a forward pass of 0.2 s was seen to take 5.6 s with two threads.
    """
    if model.num_parameters() < SMALL:
        torch.set_num_threads(1)


def disable_cudnn_attention() -> None:
    """Keeps cuDNN out of scaled-dot-product attention, in this process.

    It builds an execution plan for each new shape, about a second each on Hopper, and keeps them all (FunASR#3704);
    nearly every batch of packed or padded texts has a new one. vLLM switches it off too.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def free_memory() -> None:
    """Gives back what a finished trainer held: trainers are reference cycles, and the device keeps what they freed."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def multimodal(messages: Sequence[dict[str, str]], images: Sequence[Any]) -> list[dict[str, Any]]:
    """Puts a row's images in front of its first user message, in the form processors take."""
    result, waiting = [], list(images)
    for message in messages:
        content = [{"type": "text", "text": message["content"]}]
        if message["role"] == "user" and waiting:
            content = [*({"type": "image", "image": image} for image in waiting), *content]
            waiting = []
        result.append({"role": message["role"], "content": content})
    return result
