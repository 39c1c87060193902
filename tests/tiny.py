"""The smallest Qwen3-VL of real classes (0.17 M parameters, word-level tokenizer) for tests; made once a process."""

from functools import lru_cache

from prism_cli.tiny_models.tiny import tiny_model, tiny_processor

VOCABULARY = """
<caption> </caption> <think> </think> <answer> </answer> Answer in exactly this form: what the image shows
step-by-step reasoning final answer only is at right of plus corners holds and so ? , . yes no
a1 a2 a3 b1 b2 b3 c1 c2 c3 red green blue yellow square circle triangle empty 0 1 2 3 4 5 6 7 8 9
"""
WORDS = tuple(VOCABULARY.split())


@lru_cache
def tiny_policy(words: tuple[str, ...] = WORDS):
    """(model in eval mode, processor); a 48 × 48 picture is 9 tokens. Copy the model before training it."""
    processor = tiny_processor(words, pixels=48 * 48)
    return tiny_model(processor, hidden=64, layers=2, vision_hidden=32).eval(), processor
