"""Shortcuts: what the discriminator could be reading instead of what it should."""

import pytest
import torch

from prism_cli.discriminator.inputs import PromptInputs
from prism_cli.discriminator.shortcuts import Scored, either_way, shortcut, skeleton, swap_images

IMAGE = 9


@pytest.mark.parametrize(
    ("text", "bones"),
    [
        ("<think> The area is 12 , so 3.5! </think>", "<think> w 0 , w 0 . 0 ! </think>"),
        ("one two\nthree", "w ¶ w"),
        ("x = **4**", "w = * * 0 * *"),
        ("", ""),
    ],
)
def test_a_skeleton_keeps_form_and_drops_words(text, bones):
    assert skeleton(text) == bones


def test_a_skeleton_does_not_tell_how_many_words_there_were():
    assert skeleton("one two three four") == skeleton("one")


def test_wins_are_counted_prompt_by_prompt_and_ties_are_half():
    scored = Scored(teacher=[2, 2, 1], policy=[1, 2, 3], prompts=["a", "a", "b"])
    assert scored.wins() == [[1, 0.5], [0]]


def test_a_shortcut_may_favour_either_side():
    assert either_way([[0, 0], [1]]) == [[0, 0], [1]]
    assert either_way([[0, 0], [0]]) == [[1, 1], [1]]


def prompt(ids, value, tokens):
    return PromptInputs(ids, torch.full((tokens * 4, 2), float(value)), torch.tensor([[1, 2, tokens * 2]]))


def test_pictures_go_around_and_take_their_tokens_along():
    prompts = [prompt([1, IMAGE, 2], 0, 1), prompt([3, IMAGE, IMAGE, 4], 1, 2), prompt([5, IMAGE, 6], 2, 1)]
    swapped = swap_images(prompts, IMAGE)
    assert [one.input_ids for one in swapped] == [[1, IMAGE, IMAGE, 2], [3, IMAGE, 4], [5, IMAGE, 6]]
    assert [one.pixel_values[0, 0].item() for one in swapped] == [1, 2, 0]
    assert [one.image_grid_thw.tolist() for one in swapped] == [[[1, 2, 4]], [[1, 2, 2]], [[1, 2, 2]]]


def test_a_prompt_is_given_only_as_many_pictures_as_it_had():
    two = PromptInputs([1, IMAGE, 2, IMAGE, IMAGE], torch.zeros(12, 2), torch.tensor([[1, 2, 2], [1, 2, 4]]))
    blind = PromptInputs([7])
    swapped = swap_images([two, prompt([1, IMAGE], 0, 1), blind, two, blind], IMAGE)
    assert [one is None for one in swapped] == [False, True, True, False, True]
    assert swapped[0].input_ids == two.input_ids


def test_a_probe_as_good_as_the_discriminator_is_named_with_both_numbers():
    line = {"step": 50, "shortcuts/discriminator/reasoning": 0.74, "shortcuts/length/reasoning": 0.73}
    assert shortcut([line], "reasoning", "length") is None
    found = shortcut([line | {"shortcuts/length_suffices/reasoning": 1.0}], "reasoning", "length")
    assert found.kind == "shortcut/length/reasoning"
    assert "length alone" in found.cause
    assert "0.73, the discriminator 0.74" in found.cause
    assert shortcut([line | {"shortcuts/length_suffices/reasoning": 1.0}], "perception", "length") is None
