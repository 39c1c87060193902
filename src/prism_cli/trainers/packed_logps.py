"""The policy's log-probabilities with each prompt computed once for all its rollouts, in place of TRL's padded batch.

One packed row holds the prompts without their last token, and for each rollout that token and all of its own but the
last: so every position behind the prompts has exactly one label.
"""

from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from prism_cli.model_configs.families import family
from prism_cli.packing import ATTENTION, pack, packed_positions, use_packing
from prism_cli.progress import say

# (N, C) log-probabilities, (N, C) entropies or None, and the experts' balance loss, which packing never computes.
Logps = tuple[Tensor, Tensor | None, None]
# TRL's: patches of all images, the images' grids, and the number of images in each row.
Images = tuple[Tensor | None, Tensor | None, list[int] | None]


class _Prompt(NamedTuple):
    """A rollout's prompt: its tokens, which of them stand for images, and those images."""

    ids: Tensor
    types: Tensor
    pixels: Tensor | None
    grid: Tensor | None

    def same(self, other: "_Prompt") -> bool:
        """Whether both have the same tokens and images."""
        pairs = ((self.ids, other.ids), (self.grid, other.grid), (self.pixels, other.pixels))
        return all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


class PackedLogps:
    """Stands before TRL's `_get_per_token_logps_and_entropies`: takes its arguments, gives its result or None.

    None, and one line that says why, where packing does not apply: then TRL's own way does the work.

    Args:
        accelerator: The trainer's: it unwraps the model, and knows the mixed precision.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.reason_said = False

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        num_images: list[int] | None = None,
        mm_token_type_ids: Tensor | None = None,
        **other: Any,
    ) -> Logps | None:
        """Log-probabilities and entropies (N, C) of completions, zero where masked."""
        known = self.accelerator.unwrap_model(model)
        known = known.get_base_model() if isinstance(known, PeftModel) else known
        images = pixel_values, image_grid_thw, num_images
        prompts = _prompts(input_ids, attention_mask, logits_to_keep, images, mm_token_type_ids)
        size = batch_size or len(prompts)
        chunks = [slice(start, start + size) for start in range(0, len(prompts), size)]
        firsts = [_first_of_its_kind(prompts[chunk]) for chunk in chunks]
        if (reason := _why_not(known, prompts, firsts, other)) is not None:
            if not self.reason_said:
                cost = _cost(attention_mask, logits_to_keep, prompts, firsts)
                say(f"prompts are not shared in the policy's update: {reason}{cost}")
            self.reason_said = True
            return None
        chunked = []
        for chunk, first in zip(chunks, firsts, strict=True):
            row = _Row.of(known, input_ids[chunk], attention_mask[chunk], logits_to_keep, prompts[chunk], first)
            with self.accelerator.autocast():
                out = model(**row.inputs, fused_lm_head=True)
            chunked.append([None if x is None else row.completions(x) for x in (out.log_probs, out.entropy)])
        logps, entropies = zip(*chunked, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


class _Row(NamedTuple):
    """Rollouts (N) in one packed row: the model's inputs, and the place of its outputs.

    Attributes:
        inputs: Keyword arguments of the model.
        before: Tokens of the prompts, which have no label.
        tokens: (N, C) bool, the completions' tokens; the row holds them in this order.
    """

    inputs: dict[str, Any]
    before: int
    tokens: Tensor

    @classmethod
    def of(cls, known: Any, ids: Tensor, mask: Tensor, keep: int, prompts: list[_Prompt], first: list[int]) -> "_Row":
        """Lays rollouts out; `first` is each one's first row with the same prompt."""
        tokens = mask[:, -keep:].bool()
        shared = {n: prompts[n] for n in sorted(set(first))}
        # A rollout may be masked entirely; it then has no place in the row.
        lengths = [(length, list(shared).index(first[n])) for n, length in enumerate(tokens.sum(1).tolist()) if length]
        parts, prompt_of = [length for length, _ in lengths], [p for _, p in lengths]
        positions = packed_positions([_positions(known, one)[:, :-1] for one in shared.values()], parts, prompt_of)
        before = torch.cat([one.ids[:-1] for one in shared.values()])
        pixels = [one.pixels for one in shared.values() if one.pixels is not None]
        grids = [one.grid for one in shared.values() if one.grid is not None]
        packing = pack([len(one.ids) - 1 for one in shared.values()], parts, prompt_of)
        inputs = {
            # Prompts are padded on the left, so the column before the completion holds their last tokens.
            "input_ids": torch.cat([before, ids[:, -keep - 1 : -1][tokens]]).unsqueeze(0),
            "shift_labels": torch.cat([torch.full_like(before, -100), ids[:, -keep:][tokens]]).unsqueeze(0),
            "position_ids": positions.to(ids.device),
            "packing": packing.to(ids.device),
            "pixel_values": torch.cat(pixels) if pixels else None,
            "image_grid_thw": torch.cat(grids) if grids else None,
        }
        return cls(inputs, len(before), tokens)

    def completions(self, values: Tensor) -> Tensor:
        """(N, C) of the row's (1, T); still tied to the model where there is no token."""
        return values.new_zeros(self.tokens.shape).masked_scatter(self.tokens, values[:, self.before :])


def _why_not(known: Any, prompts: list[_Prompt], firsts: list[list[int]], other: dict[str, Any]) -> str | None:
    """The reason why these rollouts can't be packed; None where they can, and then the model is ready."""
    if any(value is not None and value is not False for value in other.values()):
        return "TRL asks for more than log-probabilities"
    if not family(known.config.model_type).prefix_packing:
        return f"{known.__class__.__name__} is not of the Qwen3-VL family"
    if min(len(prompt.ids) for prompt in prompts) < 2:
        return "a prompt has a single token"
    if all(first == list(range(len(first))) for first in firsts):
        return "no two rollouts of a micro-batch answer one prompt"
    attention = cast(Any, known.config).text_config._attn_implementation
    if attention == "sdpa":
        use_packing(known)
    elif attention != ATTENTION:
        return f"the model's attention is {attention}, not sdpa"
    return None


def _cost(mask: Tensor, keep: int, prompts: list[_Prompt], firsts: list[list[int]]) -> str:
    """Tokens that are computed where prompts are not shared, beside those where they are; nothing where as many."""
    lengths = iter([len(prompt.ids) for prompt in prompts])
    once = sum(length for first in firsts for n, f in enumerate(first) if (length := next(lengths)) and f == n)
    own, packed = int(mask.sum()), once + int(mask[:, -keep:].sum())
    return f"; these rollouts take {own:,} tokens a pass instead of {packed:,}" if packed < own else ""


def _positions(model: Any, prompt: _Prompt) -> Tensor:
    """(3, P) positions by the model's own rule."""
    types = prompt.types.unsqueeze(0)
    return model.model.get_rope_index(prompt.ids.unsqueeze(0), types, image_grid_thw=prompt.grid)[0][:, 0]


def _prompts(ids: Tensor, mask: Tensor, keep: int, images: Images, types: Tensor | None) -> list[_Prompt]:
    """(N,) the prompt of each row, padding and completion taken off."""
    kinds = torch.zeros_like(ids) if types is None else types
    own: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(ids)
    pixels, grid, counts = images
    if pixels is not None and grid is not None and counts is not None:
        grids = grid.split(counts)
        patches = [int(one.prod(-1).sum()) for one in grids]
        own = [(x, y) if n else (None, None) for n, x, y in zip(counts, pixels.split(patches), grids, strict=True)]
    here = mask[:, :-keep].bool()
    return [_Prompt(ids[n, :-keep][here[n]], kinds[n, :-keep][here[n]], *own[n]) for n in range(len(ids))]


def _first_of_its_kind(prompts: list[_Prompt]) -> list[int]:
    """(N,) for each prompt, the first row that holds the same one."""
    first: list[int] = []
    for n, prompt in enumerate(prompts):
        first.append(next((m for m in sorted(set(first)) if prompt.same(prompts[m])), n))
    return first


def prompts_together(micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL's shuffled micro-batches of one generation, cut anew so that rollouts of a prompt stand side by side.

    The prompts keep the shuffled order. A prompt's rollouts in one micro-batch can share it.
    """
    split: list[dict[str, Any]] = [split_pixel_values_by_grid(batch) for batch in micro_batches]
    merged: Any = {key: _merged([batch[key] for batch in split]) for key in split[0]}
    rows: dict[str, Any] = unsplit_pixel_values_by_grid(merged)
    keep = rows["completion_ids"].shape[1]
    mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)
    images = rows.get("pixel_values"), rows.get("image_grid_thw"), rows.get("num_images")
    first = _first_of_its_kind(_prompts(ids, mask, keep, images, types=None))
    order = sorted(range(len(first)), key=first.__getitem__)
    ordered: Any = split_tensor_dict({key: _taken(merged[key], order) for key in merged}, len(micro_batches))
    return [unsplit_pixel_values_by_grid(batch) for batch in ordered]


def _merged(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [one for value in values for one in value]
    return torch.cat(values) if isinstance(values[0], Tensor) and values[0].ndim else values[0]


def _taken(value: Any, order: list[int]) -> Any:
    if isinstance(value, list):
        return [value[n] for n in order]
    return value[order] if isinstance(value, Tensor) and value.ndim else value
