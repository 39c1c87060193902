"""A tiny Qwen3-VL with a word-level tokenizer, small enough to train on a laptop's CPU in minutes.

Same classes, processor and chat format as the real one; only widths, vocabulary and image size are small.
"""

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH = 8
MERGE = 2
# Qwen's chat form. Blanks around the words keep them apart for a tokenizer that splits on blanks.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ item.text }}{% endif %}"
    "{% endfor %}{% endif %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def tiny_processor(vocabulary: Sequence[str], pixels: int, patch: int = PATCH) -> Qwen3VLProcessor:
    """A processor with these words as vocabulary, which scales pictures to `pixels` pixels.

    Args:
        vocabulary: All words of the world and its instruction.
        pixels: Picture size after resizing; 48·48 gives 9 visual tokens.
        patch: Side of a patch of the vision tower, in pixels.
    """
    words = ["[UNK]", "system", "user", "assistant", *dict.fromkeys(vocabulary)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|endoftext|>", "<|im_end|>")],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    size = {"shortest_edge": pixels, "longest_edge": pixels}
    images = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": MERGE, "size": size}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**images),
        tokenizer=fast,
        video_processor=Qwen3VLVideoProcessor(**images),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(
    processor: Qwen3VLProcessor,
    hidden: int = 96,
    layers: int = 3,
    vision_hidden: int = 64,
    vision_layers: int = 2,
    seed: int = 0,
) -> Qwen3VLForConditionalGeneration:
    """A randomly initialised tiny Qwen3-VL for this processor, about half a million parameters.

    With the library's initial standard deviation (0.02) a model of this width ignores the picture for hundreds of
    steps; with 0.08, and 0.5 for the vision tower's position embeddings, it does not.
    """
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    heads = max(1, hidden // 32)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "initializer_range": 0.08,
            # Rotary sections (time, height, width) share the 16 frequencies of a 32-wide head.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,  # transformers knows; vLLM must be told
            },
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": 2 * vision_hidden,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "out_hidden_size": hidden,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.08,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        torch.nn.init.normal_(model.model.visual.pos_embed.weight, std=0.5)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
