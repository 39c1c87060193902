"""Prefix packing: the layout by hand, and its attention against every continuation alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_policy
from torch import nn

from prism_cli.packing import pack, packed_positions, prefix_attention, use_packing

# Four query heads share two key heads, as in every Qwen3-VL.
HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def attention_alone(query, key, value):
    """Causal attention of one sequence, (heads, L, D), written out."""
    group = HEADS // KEY_HEADS
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    logits = query @ key.transpose(1, 2) / WIDTH**0.5
    later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -torch.inf).softmax(-1) @ value


def row(tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (HEADS, KEY_HEADS, KEY_HEADS)
    return [
        torch.randn(1, heads, tokens, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in sizes
    ]


def places_of(prompts, parts, prompt_of):
    """For each part, the places in the row of its prompt and its own."""
    starts = [sum([*prompts, *parts][:i]) for i in range(len(prompts) + len(parts))]
    own = [range(starts[len(prompts) + r], starts[len(prompts) + r] + n) for r, n in enumerate(parts)]
    return [[*range(starts[p], starts[p] + prompts[p]), *own[r]] for r, p in enumerate(prompt_of)]


def check_against_alone(prompts, parts, prompt_of):
    packing, (query, key, value) = pack(prompts, parts, prompt_of), row(sum(prompts) + sum(parts))
    packed = prefix_attention(nn.Module(), query, key, value, None, packing=packing)[0][0].transpose(0, 1)
    weights = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    total, expected = 0.0, 0.0
    for r, places in enumerate(places_of(prompts, parts, prompt_of)):
        alone = attention_alone(*(x[0][:, places] for x in (query, key, value)))[:, prompts[prompt_of[r]] :]
        here = packed[:, packing.starts[r] : packing.ends[r] + 1]
        assert torch.allclose(here, alone, atol=1e-12)
        total, expected = total + (here * weights).sum(), expected + (alone * weights).sum()
    for ours, own in zip(*(torch.autograd.grad(loss, (query, key, value)) for loss in (total, expected)), strict=True):
        assert torch.allclose(ours, own, atol=1e-12)


@pytest.mark.parametrize(
    ("prompts", "parts", "prompt_of"),
    [
        ([5], [3], [0]),
        ([5], [3, 4, 60, 61, 200], [0] * 5),
        ([5, 7, 5], [9, 2, 40, 1], [2, 0, 1, 0]),
        ([1], [1], [0]),
        ([4, 6], [3], [1]),
    ],
    ids=["one", "unlike lengths", "three prompts, two of one length", "single tokens", "a prompt without parts"],
)
def test_every_part_is_attended_as_if_it_stood_alone_behind_its_prompt(prompts, parts, prompt_of):
    check_against_alone(prompts, parts, prompt_of)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_lengths_are_attended_as_alone(data):
    prompts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    parts = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    check_against_alone(prompts, parts, [data.draw(st.integers(0, len(prompts) - 1)) for _ in parts])


def test_a_prompt_attends_to_itself():
    packing, (query, key, value) = pack([6, 4], [3], [0]), row(13)
    packed = prefix_attention(nn.Module(), query, key, value, None, packing=packing)[0][0].transpose(0, 1)
    for start, stop in ((0, 6), (6, 10)):
        alone = attention_alone(*(x[0][:, start:stop] for x in (query, key, value)))
        assert torch.allclose(packed[:, start:stop], alone, atol=1e-12)


def test_places_and_copies_by_hand():
    packing = pack([2, 3], [2, 1, 2], [1, 0, 1])
    assert packing.starts.tolist() == [5, 7, 8]
    assert packing.ends.tolist() == [6, 7, 9]
    # The first prompt would stand in one row, the second in two.
    assert packing.copies.tolist() == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]


def test_parts_of_about_one_length_share_a_call():
    # Twenty is within a few tokens of 34; 100 is not, and 80 is within a third of 100.
    sizes = [bucket.size for bucket in pack([5], [20, 100, 34, 80], [0] * 4).buckets]
    assert sizes == [(1, 5), (2, 100), (2, 34)]


def test_a_part_counts_on_from_its_prompts_largest_position():
    # A picture of 2 × 3 tokens after one word: it takes six places and moves the count by three.
    view = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 1, 2, 3]])
    words = torch.arange(2).expand(3, -1)
    positions = packed_positions([view, words], [2, 3], [1, 0])
    assert positions.shape == (3, 1, 7 + 2 + 2 + 3)
    assert torch.equal(positions[:, 0, :9], torch.cat([view, words], 1))
    assert positions[:, 0, 9:].tolist() == [[2, 3, 4, 5, 6]] * 3


def test_without_a_packing_nothing_changes():
    plain, _ = tiny_policy()
    packed = copy.deepcopy(plain)
    use_packing(packed)
    ids = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for attention_mask in (None, mask):
        with torch.no_grad():
            ours, own = (model(input_ids=ids, attention_mask=attention_mask).logits for model in (packed, plain))
        assert torch.equal(ours, own)


def test_only_the_text_tower_is_changed_and_nothing_of_it_is_saved():
    model = copy.deepcopy(tiny_policy()[0])
    use_packing(model)
    assert model.config.text_config._attn_implementation == "prefix_packed"
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert "prefix_packed" not in model.config.to_json_string()
