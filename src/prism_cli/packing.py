"""Prefix packing: a prompt once, and all that continues it, in one row instead of one row a continuation.

The row is `[prompt_1 | prompt_2 | … | part_1 | part_2 | …]`. A prompt attends to itself; a part to its own prompt and
itself; a part's positions begin after its prompt's. Every state equals that of `[prompt | part]` alone, but prompts
(and their images) are computed once. Letters: T tokens of the row, S places in the buckets (a few of them padding).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "prefix_packed"
# Segments of a bucket are padded to its longest: at most by a third, or by a few tokens where that is cheaper than
# another call.
SLACK, FEW = 0.75, 16


class Bucket(NamedTuple):
    """Segments that go through one attention call: U prompts of P tokens, or B parts (≤ L tokens) that continue them.

    Attributes:
        size: (B, L).
        prefix: Which earlier bucket holds the parts' prompts, or None for a bucket of prompts.
        prefix_of: (B,) long, each part's row in that bucket; None for prompts, or when there is one row.
        mask: (L, P + L) bool: all of the prompt, and itself up to the query; None for prompts.
    """

    size: tuple[int, int]
    prefix: int | None
    prefix_of: Tensor | None
    mask: Tensor | None


class Packing(NamedTuple):
    """Attention layout of one row; the keyword argument `packing` of a model whose attention is `prefix_packed`.

    Attributes:
        buckets: In the order of `places`.
        places: (S,) long, the row's token at each place of the buckets, one bucket after the other.
        restore: (T,) long, the place of each of the row's tokens.
        starts: (R,) long, where each part begins in the row.
        ends: (R,) long, each part's last token.
        prompt_of: (R,) long, the prompt each part continues.
        copies: (T,) float, how often each token would stand in rows of their own: a prompt's once a part.
    """

    buckets: tuple[Bucket, ...]
    places: Tensor
    restore: Tensor
    starts: Tensor
    ends: Tensor
    prompt_of: Tensor
    copies: Tensor

    def to(self, device: torch.device) -> "Packing":
        """The same on a device."""
        return _to(self, device)._replace(buckets=tuple(_to(bucket, device) for bucket in self.buckets))


def _to(fields: Any, device: torch.device) -> Any:
    return fields._replace(**{k: v.to(device) for k, v in fields._asdict().items() if isinstance(v, Tensor)})


def pack(prompts: Sequence[int], parts: Sequence[int], prompt_of: Sequence[int]) -> Packing:
    """Attention layout of a row of these lengths: prompts first, then parts, both in the order given.

    Args:
        prompts: (P,) tokens of each prompt, at least one.
        parts: (R,) tokens of each part, at least one.
        prompt_of: (R,) the prompt each part continues.
    """
    lengths = torch.tensor([*prompts, *parts])
    starts = lengths.cumsum(0) - lengths
    members, buckets = _fill_buckets(prompts, parts, prompt_of)
    places, real = [], []
    for segments, bucket in zip(members, buckets, strict=True):
        within, last = torch.arange(bucket.size[1]), lengths[segments, None] - 1
        # Padding repeats a segment's last token: later than every query that counts, so it is never attended to.
        places.append((starts[segments, None] + torch.minimum(within, last)).flatten())
        real.append((within <= last).flatten())
    restore = torch.empty(int(lengths.sum()), dtype=torch.long)
    restore[torch.cat(places)[torch.cat(real)]] = torch.cat(real).nonzero().squeeze(1)
    continued = torch.tensor(prompt_of, dtype=torch.long)
    copies = torch.cat([torch.bincount(continued, minlength=len(prompts)), torch.ones(len(parts))])
    return Packing(
        buckets=tuple(buckets),
        places=torch.cat(places),
        restore=restore,
        starts=starts[len(prompts) :],
        ends=(starts + lengths - 1)[len(prompts) :],
        prompt_of=continued,
        copies=copies.repeat_interleave(lengths),
    )


def _fill_buckets(
    prompts: Sequence[int], parts: Sequence[int], prompt_of: Sequence[int]
) -> tuple[list[list[int]], list[Bucket]]:
    """The segments of each bucket (prompts counted first), and the buckets: those of prompts before those of parts."""
    members: list[list[int]] = []
    buckets: list[Bucket] = []
    seat: dict[int, tuple[int, int]] = {}  # prompt → its bucket and row there
    for length in sorted(set(prompts)):
        # Of exactly one length: the parts behind them need one mask.
        alike = [p for p, n in enumerate(prompts) if n == length]
        seat |= {p: (len(buckets), row) for row, p in enumerate(alike)}
        members.append(alike)
        buckets.append(Bucket((len(alike), length), prefix=None, prefix_of=None, mask=None))
    for prefix, (rows, width) in enumerate([bucket.size for bucket in buckets]):
        behind = sorted((r for r, p in enumerate(prompt_of) if seat[p][0] == prefix), key=parts.__getitem__)
        for alike in _alike(behind, parts):
            longest = parts[alike[-1]]
            mask = torch.ones(longest, width + longest, dtype=torch.bool).tril(width)
            which = torch.tensor([seat[prompt_of[r]][1] for r in alike]) if rows > 1 else None
            members.append([len(prompts) + r for r in alike])
            buckets.append(Bucket((len(alike), longest), prefix, which, mask))
    return members, buckets


def _alike(ascending: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cuts parts in ascending length into groups worth padding to their longest."""
    groups: list[list[int]] = []
    for r in reversed(ascending):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (lengths[r] >= SLACK * longest or longest - lengths[r] <= FEW):
            groups[-1].append(r)
        else:
            groups.append([r])
    return [group[::-1] for group in groups]


def packed_positions(prompts: Sequence[Tensor], parts: Sequence[int], prompt_of: Sequence[int]) -> Tensor:
    """(A, 1, T) positions of a row: prompts as given, each part counting on from its prompt's largest on all axes.

    Args:
        prompts: Positions (A, P) of each prompt alone, by the model's own rule. An image advances less than its tokens.
        parts: (R,) tokens of each part.
        prompt_of: (R,) the prompt each part continues.
    """
    axes = len(prompts[0])
    after = [int(positions.max()) + 1 for positions in prompts]
    counted = [torch.arange(n) + after[p] for n, p in zip(parts, prompt_of, strict=True)]
    return torch.cat([*(p.cpu() for p in prompts), *(c.expand(axes, -1) for c in counted)], dim=1).unsqueeze(1)


def prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row: (1, heads, T, D) in, (1, T, heads, D) out; without a packing transformers' sdpa."""
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    sizes = [rows * width for rows, width in (bucket.size for bucket in packing.buckets)]
    q, k, v = (x[0].transpose(0, 1).index_select(0, packing.places).split(sizes) for x in (query, key, value))
    attended = []
    for bucket, *own in zip(packing.buckets, q, k, v, strict=True):
        own_q, own_k, own_v = (x.view(*bucket.size, *x.shape[1:]).transpose(1, 2) for x in own)
        options = {"scale": scaling, "dropout_p": dropout}
        if bucket.prefix is None:
            grouped = own_q.shape[1] != own_k.shape[1]
            out = scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True, enable_gqa=grouped, **options)
        else:
            shape = packing.buckets[bucket.prefix].size
            keys, values = (_after_prefix(x[bucket.prefix].view(*shape, *x[0].shape[1:]), own, bucket) for x, own in
                            ((k, own_k), (v, own_v)))  # fmt: skip
            out = _grouped_attention(own_q, keys, values, bucket.mask, options)
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, packing.restore).unsqueeze(0), None


def _after_prefix(prefix: Tensor, own: Tensor, bucket: Bucket) -> Tensor:
    """(B, heads, P + L, D): each part's own keys or values after those of its prompt, (U, P, heads, D)."""
    rows = len(own)
    chosen = prefix.expand(rows, -1, -1, -1) if bucket.prefix_of is None else prefix.index_select(0, bucket.prefix_of)
    return torch.cat([chosen.transpose(1, 2), own], dim=2)


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
    """Masked attention whose query heads share key heads, without copies of the keys.

    sdpa's own way of sharing is not fused where there is a mask, so heads of a group become more queries instead.
    """
    rows, heads, length, width = query.shape
    group = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], group * length, width)
    out = scaled_dot_product_attention(folded, key, value, attn_mask=mask.repeat(group, 1), **options)
    return out.reshape(rows, heads, length, width)


def use_packing(model: Any) -> None:
    """Makes the text tower of a vision-language model able to take `packing`; without it nothing changes."""
    model.set_attn_implementation({"text_config": ATTENTION})


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
