"""Token ids of prompts and parts, laid out as the one packed row the discriminator reads."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prism_cli.packing import Packing, pack

Parts = dict[str, list[int]]
"""Part name → its token ids, as `responses.Grammar.split_token_ids` gives them."""


class PromptInputs(NamedTuple):
    """A prompt as the model reads it.

    Attributes:
        input_ids: Chat-templated, image tokens expanded, generation prompt included.
        pixel_values: (patches, dim) of its images, or None.
        image_grid_thw: (images, 3), or None.
    """

    input_ids: list[int]
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None


class Comparisons(NamedTuple):
    """Rollouts beside their prompts' teacher answers. A malformed answer or rollout is None, and is not compared.

    Attributes:
        prompts: (P,).
        teacher: (P,) parts of each prompt's teacher answer.
        rollouts: (N,) parts of each rollout.
        prompt_of: (N,) the prompt each rollout answers.
    """

    prompts: Sequence[PromptInputs]
    teacher: Sequence[Parts | None]
    rollouts: Sequence[Parts | None]
    prompt_of: Sequence[int]


class ScoreInputs(NamedTuple):
    """R parts, each with its read-out token, behind P prompts in one packed row of T tokens.

    Attributes:
        input_ids: (1, T) long, prompts then parts.
        packing: Who attends to whom, and where parts begin and end (on their read-out tokens).
        prompt_lengths: (P,) tokens of each prompt.
        part_lengths: (R,) tokens of each part, read-out token included.
        pixel_values: (patches, dim) over the prompts' images, or None.
        image_grid_thw: (images, 3), or None.
    """

    input_ids: Tensor
    packing: Packing
    prompt_lengths: tuple[int, ...]
    part_lengths: tuple[int, ...]
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None

    def to(self, device: torch.device) -> "ScoreInputs":
        """The same on a device."""
        tensors = {name: field for name, field in self._asdict().items() if isinstance(field, Tensor)}
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        return self._replace(packing=self.packing.to(device), **moved)


def build_score_inputs(
    prompts: Sequence[PromptInputs], parts: Sequence[tuple[int, list[int]]], readout_id: int
) -> ScoreInputs:
    """Lays parts out behind their prompts.

    Args:
        prompts: (P,).
        parts: (R,) pairs of a prompt's index and a part's token ids.
        readout_id: The token every part ends on.
    """
    prompt_lengths = tuple(len(prompt.input_ids) for prompt in prompts)
    part_lengths = tuple(len(ids) + 1 for _, ids in parts)
    row = [i for prompt in prompts for i in prompt.input_ids]
    row += [i for _, ids in parts for i in (*ids, readout_id)]
    pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
    grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
    return ScoreInputs(
        input_ids=torch.tensor([row]),
        packing=pack(prompt_lengths, part_lengths, [p for p, _ in parts]),
        prompt_lengths=prompt_lengths,
        part_lengths=part_lengths,
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.cat(grids) if grids else None,
    )


def without_images(prompt: PromptInputs, image_ids: Collection[int]) -> PromptInputs:
    """The same prompt with its pictures, and the tokens that stood for them, taken out.

    Args:
        prompt: With or without images.
        image_ids: Tokens to drop: the image token and the marks around it.
    """
    return PromptInputs([i for i in prompt.input_ids if i not in image_ids])
