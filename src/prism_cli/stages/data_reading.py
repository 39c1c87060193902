"""The settings that `prism data check` and `prism data show` read rows by: a run's, else the defaults."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli.assembly.response import run_settings, section_settings
from prism_cli.errors import RecipeError
from prism_cli.recipes.sections import ImageSection, ResponseSection
from prism_cli.responses import Grammar
from prism_cli.runs.references import resolve_model

Prompt = Sequence[dict[str, str]]


class Reading(NamedTuple):
    """The settings rows are read by: a run's, else the defaults.

    Attributes:
        grammar: What responses must follow.
        instruction: System message of prompts that have none, or None.
        processor: Counts and renders tokens; None when no model was named.
    """

    grammar: Grammar
    instruction: str | None
    processor: Any | None


def reading_of(run: str | None, tokens: str | None) -> Reading:
    """Grammar and instruction of a run or the defaults, and the processor of `tokens` or the run."""
    settings = section_settings(ResponseSection()) if run is None else run_settings(run)
    named = tokens or run
    return Reading(*settings, None if named is None else _processor(named))


def _processor(name: str) -> Any:
    """The processor a run was trained with, or a model's with the default pixel budget."""
    from transformers import AutoProcessor

    from prism_cli import models
    from prism_cli.assembly.run_folder import quiet_libraries

    quiet_libraries()
    is_run = (Path(name.partition("@")[0]) / "run.json").is_file()
    path = str(resolve_model(name)[0]) if is_run else name
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(f"can't load a processor from {path!r}: {reason}", "check --tokens") from None
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise RecipeError(f"{path!r} reads no pictures", "--tokens takes a vision-language model")
    if not is_run:
        image = ImageSection()
        models.set_pixel_budget(processor, image.min_pixels, image.max_pixels)
    return processor


def instructed(prompt: Prompt, instruction: str | None) -> list[dict[str, str]]:
    """A prompt with the instruction in front; its own system message wins."""
    if instruction is None or prompt[0]["role"] == "system":
        return list(prompt)
    return [{"role": "system", "content": instruction}, *prompt]
