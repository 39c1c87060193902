"""Token ids of prompts and parts, laid out as the one batch the discriminator reads."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
    """R rows `[prompt | part | read-out token]`, right-padded to T. Pixels stand once a prompt, not once a row.

    Attributes:
        input_ids: (R, T) long.
        attention_mask: (R, T) long.
        part_mask: (R, T) bool, the part's own tokens, read-out token excluded.
        readout: (R,) long, where the read-out token stands.
        pixel_values: (patches, dim) over the prompts' images, or None.
        image_grid_thw: (images, 3), or None.
        row_images: For each row, its images' places in `image_grid_thw`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    part_mask: Tensor
    readout: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    row_images: tuple[range, ...]

    def to(self, device: torch.device) -> "ScoreInputs":
        """The same on a device."""
        tensors = {name: field for name, field in self._asdict().items() if isinstance(field, Tensor)}
        return self._replace(**{name: tensor.to(device) for name, tensor in tensors.items()})


def build_score_inputs(
    prompts: Sequence[PromptInputs], parts: Sequence[tuple[int, list[int]]], readout_id: int, pad_id: int
) -> ScoreInputs:
    """Lays parts out as rows after their prompts.

    Args:
        prompts: (P,).
        parts: (R,) pairs of a prompt's index and a part's token ids.
        readout_id: The token every row ends on.
        pad_id: Fills rows to the longest.
    """
    rows = [[*prompts[p].input_ids, *ids, readout_id] for p, ids in parts]
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    columns = torch.arange(width)
    starts = torch.tensor([len(prompts[p].input_ids) for p, _ in parts])
    images, seen = [], 0
    for prompt in prompts:
        count = 0 if prompt.image_grid_thw is None else len(prompt.image_grid_thw)
        images.append(range(seen, seen + count))
        seen += count
    pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
    grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
    return ScoreInputs(
        input_ids=torch.tensor([row + [pad_id] * (width - len(row)) for row in rows]),
        attention_mask=(columns < lengths[:, None]).long(),
        part_mask=(columns >= starts[:, None]) & (columns < lengths[:, None] - 1),
        readout=lengths - 1,
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.cat(grids) if grids else None,
        row_images=tuple(images[p] for p, _ in parts),
    )


def without_images(prompt: PromptInputs, image_ids: Collection[int]) -> PromptInputs:
    """The same prompt with its pictures, and the tokens that stood for them, taken out.

    Args:
        prompt: With or without images.
        image_ids: Tokens to drop: the image token and the marks around it.
    """
    return PromptInputs([i for i in prompt.input_ids if i not in image_ids])
