"""Rollouts of several generations as one batch: TRL's output taken apart by rollout and put together again."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

# TRL's output of a generation: name → one value a rollout.
Columns = dict[str, list[Any]]
# What stands token by token beside a completion, and what fills it up.
BESIDE_COMPLETION = {
    "completion_mask": 0,
    "tool_mask": 1,
    "old_per_token_logps": 0,
    "ref_per_token_logps": 0,
    "sampling_per_token_logps": 0,
    "importance_sampling_ratio": 1,
}
# What TRL lays flat over all rollouts and their pictures, for one family of models or another.
FLAT = ("pixel_values", "image_grid_thw", "image_position_ids", "pixel_attention_mask", "spatial_shapes", "image_sizes")


def columns(output: Mapping[str, Any]) -> Columns:
    """TRL's output rollout by rollout, without padding; single numbers about the batch are left out."""
    split: dict[str, Any] = split_pixel_values_by_grid(dict(output))
    prompts, completions = output["prompt_mask"].bool(), output["completion_mask"].bool()
    # A completion may be masked entirely; a column is left of it, for what is in it is not looked at.
    lengths = completions.sum(1).clamp(min=1).tolist()
    width = output["prompt_ids"].shape[1]

    def rows(name: str, values: Any) -> list[Any]:
        if name in ("prompt_ids", "prompt_mask"):
            return [value[real] for value, real in zip(values, prompts, strict=True)]
        if name in BESIDE_COMPLETION or name == "completion_ids":
            return [value[:length] for value, length in zip(values, lengths, strict=True)]
        if name.endswith("token_type_ids"):  # of prompt and completion
            ends = [width + length for length in lengths]
            return [
                torch.cat([value[:width][real], value[width:end]])
                for value, real, end in zip(values, prompts, ends, strict=True)
            ]
        # A model may have its pictures padded to one row a rollout instead.
        return list(values.split(1) if name in FLAT and isinstance(values, Tensor) else values)

    return {name: rows(name, values) for name, values in split.items() if not _is_number(values)}


def batch(rollouts: Columns, pad_id: int) -> dict[str, Any]:
    """The opposite of `columns`: rollouts of any lengths as TRL's padded output; what fills up is never looked at."""
    width = max(len(mask) for mask in rollouts["prompt_mask"])
    prompt_lengths = [len(mask) for mask in rollouts["prompt_mask"]]
    height = max(len(ids) for ids in rollouts["completion_ids"])

    def laid_out(name: str, values: list[Any]) -> Any:
        if name in ("prompt_ids", "prompt_mask"):
            fill = pad_id if name == "prompt_ids" else 0
            return torch.stack([pad(value, (width - len(value), 0), value=fill) for value in values])
        if name in BESIDE_COMPLETION or name == "completion_ids":
            fill = BESIDE_COMPLETION.get(name, pad_id)
            longest = max(len(value) for value in values)  # a ratio of sequences is one number a rollout
            return torch.stack([pad(value, (0, longest - len(value)), value=fill) for value in values])
        if name.endswith("token_type_ids"):
            gaps = [
                (width - length, width + height - (width - length) - len(value))
                for length, value in zip(prompt_lengths, values, strict=True)
            ]
            return torch.stack([pad(value, gap) for value, gap in zip(values, gaps, strict=True)])
        if name in FLAT or not isinstance(values[0], Tensor):
            return values
        return torch.stack(values)

    return unsplit_pixel_values_by_grid({name: laid_out(name, values) for name, values in rollouts.items()})


def _is_number(values: Any) -> bool:
    return isinstance(values, Tensor) and values.ndim == 0
