"""TRL's gathers without pictures: what it collects from all processes for its log of completions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer import grpo_trainer
from trl.trainer.utils import strip_images_from_messages


@contextmanager
def pictures_left_out() -> Iterator[None]:
    """In this block TRL gathers conversations without their pictures.

    It gathers each step's prompts from all processes, in the main memory of each, to log texts: 512 pictures of 2
    megapixels are 3 GB a process.
    """
    module: Any = grpo_trainer
    gather = module.gather_object
    module.gather_object = lambda values: gather([_texts(value) for value in values])
    try:
        yield
    finally:
        module.gather_object = gather


def _texts(value: Any) -> Any:
    """A conversation without pictures; anything else as it is."""
    conversation = isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]
    return strip_images_from_messages(value) if conversation else value
