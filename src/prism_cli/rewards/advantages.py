"""Advantages of rollouts from the discriminator's scores of their parts."""

from typing import Literal

import torch
from torch import Tensor

STD_EPSILON = 1e-6


def align_advantages(
    scores: Tensor,
    valid: Tensor,
    weights: Tensor,
    group_size: int,
    rule: Literal["per_part", "combined"] = "per_part",
    malformed: Literal["floor", "apart"] = "floor",
    std_floor: float = 0.0,
    malformed_penalty: float = 1.5,
) -> Tensor:
    """Advantage of each rollout: its parts' scores, normalised within its group, minus a penalty when malformed.

    `per_part` (the released code): A = Σ_k w_k z_k − penalty·[malformed]. `combined` (the paper's Eq. 3): scores are
    weighted first and normalised once. `floor` gives malformed rollouts the group's smallest valid score − 1 (−1 where
    there is none) before normalising; `apart` normalises the well-formed alone and gives malformed ones the smallest z.

    Args:
        scores: (N, K) float, N = consecutive groups of `group_size`; rows of malformed rollouts are never read.
        valid: (N,) bool, whether the rollout is well-formed.
        weights: (K,), the parts' α.
        group_size: Rollouts a prompt; a group of one is not normalised (z = s).
        rule: Normalise each part, or their weighted sum.
        malformed: How malformed rollouts enter the normalisation.
        std_floor: The least standard deviation a group is divided by, in score units.
        malformed_penalty: Taken off a malformed rollout's advantage.

    Returns:
        (N,) in the dtype of `scores`.

    Raises:
        ValueError: N is not a multiple of `group_size`.
    """
    if len(scores) % group_size:
        raise ValueError(f"{len(scores)} rollouts do not make groups of {group_size}")
    # Double precision: equal float32 scores have a std of rounding noise as large as STD_EPSILON.
    weights = weights.to(scores.device, torch.float64)
    ok = valid.view(-1, group_size, 1)
    raw = torch.where(ok, scores.double().view(-1, group_size, scores.shape[1]), 0.0)
    if rule == "combined":
        raw, weights = (raw * weights).sum(-1, keepdim=True), weights.new_ones(1)
    if malformed == "floor":
        lowest = torch.where(ok, raw, torch.inf).amin(1, keepdim=True)
        floor = torch.where(lowest.isinf(), 0.0, lowest) - 1
        raw = torch.where(ok, raw, floor)
        z = _normalise(raw, torch.ones_like(ok), std_floor)
    else:
        z = _normalise(raw, ok, std_floor)
        lowest = torch.where(ok, z, torch.inf).amin(1, keepdim=True)
        z = torch.where(ok, z, torch.where(lowest.isinf(), 0.0, lowest))
    advantages = (z * weights).sum(-1) - malformed_penalty * ~ok.squeeze(-1)
    return advantages.flatten().to(scores.dtype)


def _normalise(scores: Tensor, counted: Tensor, std_floor: float) -> Tensor:
    """(s − mean) / (max(std, floor) + 1e-6) along dim 1 of (groups, G, K), over the counted (groups, G, 1) only."""
    if scores.shape[1] == 1:
        return scores
    count = counted.sum(1, keepdim=True)
    mean = torch.where(counted, scores, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    squares = torch.where(counted, (scores - mean) ** 2, 0.0).sum(1, keepdim=True)
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    return (scores - mean) / (std.clamp(min=std_floor) + STD_EPSILON)
