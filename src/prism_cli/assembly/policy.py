"""The policy a recipe starts from: loaded, built, and its LoRA adapters."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.assembly.response import grammar_of, instruction_of
from prism_cli.assembly.run_folder import lineage
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.progress import say
from prism_cli.recipes.sections import ImageSection, ResponseSection, TinyModel
from prism_cli.recipes.stages import Stage
from prism_cli.responses import Grammar
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model
from prism_cli.worlds import world

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from prism_cli.models import Policy


# Attention and MLP of the language model, by their names in transformers (SmolVLM calls it text_model).
LANGUAGE_LAYERS = r".*(language|text)_model.*\.(q|k|v|o|gate|up|down)_proj"


def start_policy(recipe: Stage, whole: bool = False) -> "Policy":
    """Loads or builds the policy a stage starts from, with its grammar, instruction and pixel budget.

    Args:
        recipe: The stage's recipe.
        whole: Never in 4 bits, whatever `lora.bits` says.

    Raises:
        RecipeError: nothing loadable there, or `lora.bits` where it can't be.
        CheckpointError: the run it starts from has no model.
    """
    from prism_cli import models

    four_bits = not whole and _four_bits(recipe)
    if recipe.from_ is not None:
        return models.load_policy(resolve_model(recipe.from_)[0], four_bits=four_bits)
    response = recipe.response or ResponseSection()
    image = recipe.image or ImageSection()
    grammar = grammar_of(response)
    instruction = instruction_of(response, grammar)
    if isinstance(recipe.model, TinyModel):
        model, processor = _tiny(recipe.model, grammar, instruction, image.max_pixels, recipe.seed)
    else:
        section = recipe.model
        assert section is not None, "check_start refuses a recipe without a start"
        model, processor = models.load_pretrained(
            section.path, section.revision, section.dtype, section.attention, four_bits
        )
    if not models.set_pixel_budget(processor, image.min_pixels, image.max_pixels):
        say("`image` has no effect: this model scales every picture to a size of its own")
    return models.Policy(model, processor, grammar, instruction)


def _tiny(section: TinyModel, grammar: Grammar, instruction: str | None, pixels: int, seed: int):
    from prism_cli.tiny_models.tiny import tiny_model, tiny_processor

    tags = [mark for tag in grammar.tags for mark in (f"<{tag}>", f"</{tag}>")]
    words = [*world(section.world).vocabulary, *tags, *(instruction or "").split()]
    processor = tiny_processor(words, pixels)
    sizes = {"hidden": section.hidden, "layers": section.layers}
    vision = {"vision_hidden": section.vision_hidden, "vision_layers": section.vision_layers}
    return tiny_model(processor, **sizes, **vision, seed=seed), processor


def lora_config(recipe: Any):
    """The PEFT config of a recipe's `lora`, or None."""
    if recipe.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        # `all-linear` is PEFT's word for all but the last one, which gives the tokens. Else the vision tower is left
        # out: vLLM can't serve its adapters.
        target_modules="all-linear" if recipe.lora.vision else LANGUAGE_LAYERS,
        task_type="CAUSAL_LM",
    )


def _four_bits(recipe: Any) -> bool:
    """Whether the policy's weights are to be held in 4 bits.

    Raises:
        RecipeError: of a tiny model, where it can't be computed, or a discriminator would be made of such weights.
    """
    lora = getattr(recipe, "lora", None)  # what only samples has none
    if lora is None or lora.bits is None:
        return False
    if isinstance(recipe.model, TinyModel):
        raise RecipeError("lora.bits: a tiny model is too small for 4 bits", "leave lora.bits out")
    from prism_cli.models import refuse_four_bits

    refuse_four_bits()
    section = getattr(recipe, "discriminator", None)
    if section is not None and section.path is None and section.base is None:
        raise RecipeError(
            "lora.bits: the discriminator would be made of the policy's weights in 4 bits",
            "name a dense Qwen3-VL in discriminator.base, or a discriminator in discriminator.path",
        )
    return True


def with_adapter(run: Run, adapter: Path) -> "Policy":
    """The policy a run started from, whole, with adapters that the run trained merged into its weights.

    Args:
        run: The run.
        adapter: Folder of the adapters: one of its checkpoints.

    Raises:
        CheckpointError: what it started from is gone, or was done again since.
    """
    from prism_cli.models import merge_adapter
    from prism_cli.recipes.load import load_recipe

    recipe = load_recipe(run.manifest["stage"], run.folder / "recipe.yaml")
    if run.manifest.get("from") != lineage(recipe):
        raise CheckpointError(
            f"{run.folder} started from another state of {recipe.from_} than is there now, so its adapters don't fit",
            "take the run's final model",
        )
    return merge_adapter(start_policy(recipe, whole=True), adapter)
