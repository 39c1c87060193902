"""Scaled-down models: a Qwen3-VL with the proportions of a large one, random weights and a small vocabulary."""

import copy
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from prism_cli.errors import RecipeError
from prism_cli.model_configs.families import family
from prism_cli.models import fit_threads
from prism_cli.tiny_models.tiny import SPECIAL_TOKENS, tiny_processor

WIDTH_DIVISOR = 32
HEAD_WIDTH = 32
# The training on the form of a response.
STEPS, ROWS, PROMPT_WORDS, LEARNING_RATE = 60, 12, (8, 40), 5e-3


def scaled_down_config(large: Mapping[str, Any], processor: Qwen3VLProcessor) -> Qwen3VLConfig:
    """The config of a scaled-down model; ratio of heads, tied embeddings, patches and deepstack stay as they are.

    Args:
        large: What the config.json of a dense Qwen3-VL says.
        processor: Its words are the scaled-down model's vocabulary.

    Raises:
        RecipeError: not a dense Qwen3-VL.
    """
    if not family(large.get("model_type")).scaled_down:
        raise RecipeError(
            f"a {large.get('model_type')} model can't be scaled down", "only a dense Qwen3-VL can (model_type qwen3_vl)"
        )
    # Read by transformers first: files of older versions say some of it in other words.
    values = Qwen3VLConfig.from_dict(copy.deepcopy(dict(large))).to_dict()
    text, vision = values["text_config"], values["vision_config"]
    deepstack = range(len(vision["deepstack_visual_indexes"]))
    kept_frequencies = HEAD_WIDTH / text["head_dim"]
    _, *rest = text["rope_parameters"]["mrope_section"]
    sections = [round(size * kept_frequencies) for size in rest]
    text |= {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": text["hidden_size"] // WIDTH_DIVISOR,
        "intermediate_size": text["intermediate_size"] // WIDTH_DIVISOR,
        "num_hidden_layers": max(2, len(deepstack)),  # the first layers each take one of deepstack's features
        "num_attention_heads": text["num_attention_heads"] // text["num_key_value_heads"],
        "num_key_value_heads": 1,
        "head_dim": HEAD_WIDTH,
        "dtype": "float32",
        "initializer_range": 0.08,  # the library's 0.02 leaves so narrow a model dull for hundreds of steps
        "bos_token_id": None,
        "eos_token_id": processor.tokenizer.eos_token_id,
        "pad_token_id": processor.tokenizer.pad_token_id,
        # Rotary sections share the frequencies of a head, half as many as it is wide.
        "rope_parameters": text["rope_parameters"] | {"mrope_section": [HEAD_WIDTH // 2 - sum(sections), *sections]},
    }
    vision |= {
        "depth": len(deepstack) + 1,
        "hidden_size": 8 * (vision["hidden_size"] // WIDTH_DIVISOR // 8),
        "intermediate_size": vision["intermediate_size"] // WIDTH_DIVISOR,
        "num_heads": 2,
        "out_hidden_size": text["hidden_size"],
        "deepstack_visual_indexes": list(deepstack),
    }
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    values |= {
        "dtype": "float32",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    return Qwen3VLConfig.from_dict(values)


def write_scaled_down(folder: Path, large: Mapping[str, Any], vocabulary: Sequence[str], tags: Sequence[str]) -> None:
    """Writes a scaled-down model's folder, as `from_pretrained` opens it; an existing folder is left alone.

    The model is trained to write words in blocks of these tags: without well-formed responses the discriminator would
    have nothing to score.

    Args:
        folder: Where.
        large: The config of the model it stands for.
        vocabulary: All words that texts may contain.
        tags: The blocks of a response, in order.

    Raises:
        RecipeError: not a dense Qwen3-VL.
    """
    if folder.is_dir():
        return
    patch = large.get("vision_config", {}).get("patch_size", 16)
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    processor = tiny_processor([*vocabulary, *marks], (4 * patch) ** 2, patch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(scaled_down_config(large, processor))
        fit_threads(model)
        _train_on_the_form(model, processor, [word for word in vocabulary if not word.startswith("<")], tags)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(folder)


def _train_on_the_form(model: Any, processor: Qwen3VLProcessor, words: list[str], tags: Sequence[str]) -> None:
    """Trains on random words in each block. Each block has its own words, so that a word determines what may follow."""
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokenizer, marks = processor.tokenizer, [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    begin = tokenizer.convert_tokens_to_ids("<|im_start|>")

    def text() -> str:
        question = " ".join(draw.choices([*words, *marks], k=draw.randint(*PROMPT_WORDS)))
        inside = [" ".join(draw.choices(words[n :: len(tags)], k=3)) for n in range(len(tags))]
        blocks = [f"<{tag}> {text} </{tag}>" for tag, text in zip(tags, inside, strict=True)]
        response = " ".join(blocks or draw.choices(words, k=3))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        return cast(str, processor.apply_chat_template(turns))

    model.train()
    for _ in range(STEPS):
        batch = tokenizer([text() for _ in range(ROWS)], return_tensors="pt", padding=True)
        response = (batch["input_ids"] == begin).cumsum(1) == 2  # the second turn
        model(**batch, labels=batch["input_ids"].masked_fill(~response, -100)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
