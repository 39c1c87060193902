"""The policy of a recipe: where it starts, loaded or built, and its LoRA adapters."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prism_cli.assembly.response import grammar_of, instruction_of
from prism_cli.assembly.run_folder import lineage
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.progress import say
from prism_cli.recipes.sections import ImageSection, PretrainedModel, ResponseSection, TinyModel
from prism_cli.recipes.stages import Stage, TrainingStage
from prism_cli.responses import Grammar
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model
from prism_cli.worlds import world

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from peft import LoraConfig

    from prism_cli.models import Policy

# Attention and MLP of the language model, by their names in transformers (SmolVLM calls it text_model).
LANGUAGE_LAYERS = r".*(language|text)_model.*\.(q|k|v|o|gate|up|down)_proj"


class TinySizes(NamedTuple):
    """A tiny Qwen3-VL: the picture world whose words it knows, width and layers of its text and vision towers."""

    world: Literal["shapes"]
    hidden: int
    layers: int
    vision_hidden: int
    vision_layers: int


class Pretrained(NamedTuple):
    """A model from a folder or the hub, as `models.load_pretrained` takes it."""

    path: str
    revision: str | None
    dtype: str


class PolicyStart(NamedTuple):
    """The start of a stage's policy.

    Attributes:
        run: A run, or `RUN@step`; what else it needs comes with it.
        model: Else a pretrained model, or the sizes of a tiny one; None where nothing is named.
        response: The section with grammar and instruction.
        min_pixels, max_pixels: Image budget.
        seed: Of a tiny model's weights.
        attention: Attention implementation.
        four_bits: The language model's weights are held in 4 bits.
    """

    run: str | None
    model: Pretrained | TinySizes | None
    response: ResponseSection
    min_pixels: int
    max_pixels: int
    seed: int
    attention: str
    four_bits: bool

    @property
    def tiny(self) -> bool:
        """Whether the model is built on the spot."""
        return isinstance(self.model, TinySizes)

    @property
    def revision(self) -> str | None:
        """Hub revision of the model; None for the newest, a folder or a run."""
        return self.model.revision if isinstance(self.model, Pretrained) else None

    @property
    def path(self) -> str | None:
        """Folder or hub id of the model; None of a tiny one, and of a run that has none yet."""
        if self.run is None:
            return self.model.path if isinstance(self.model, Pretrained) else None
        try:
            return str(resolve_model(self.run)[0])
        except CheckpointError:
            return None


def resolve_start(recipe: Stage) -> PolicyStart:
    """The start of a stage's policy, from its recipe.

    Raises:
        RecipeError: `lora.bits` of a tiny model.
    """
    lora = recipe.lora if isinstance(recipe, TrainingStage) else None
    four_bits = lora is not None and lora.bits is not None
    model = None
    match recipe.model:
        case PretrainedModel(path=path, revision=revision, dtype=dtype):
            model = Pretrained(path, revision, dtype)
        case TinyModel() as tiny:
            model = TinySizes(tiny.world, tiny.hidden, tiny.layers, tiny.vision_hidden, tiny.vision_layers)
            if four_bits:
                raise RecipeError("lora.bits: a tiny model is too small for 4 bits", "leave lora.bits out")
    image = recipe.image or ImageSection()
    response = recipe.response or ResponseSection()
    budget = (image.min_pixels, image.max_pixels)
    return PolicyStart(recipe.from_, model, response, *budget, recipe.seed, recipe.attention, four_bits)


def start_policy(recipe: Stage, unrounded: bool = False) -> "Policy":
    """Loads or builds the policy a stage starts from, with its grammar, instruction and pixel budget.

    Args:
        recipe: The stage's recipe.
        unrounded: Never in 4 bits, whatever `lora.bits` says.

    Raises:
        RecipeError: nothing named or loadable, or `lora.bits` where it can't be.
        CheckpointError: the run it starts from has no model.
    """
    from prism_cli import models
    from prism_cli.adapters import refuse_four_bits

    start = resolve_start(recipe)
    four_bits = start.four_bits and not unrounded
    if four_bits:
        refuse_four_bits()
    if start.run is not None:
        return models.load_policy(resolve_model(start.run)[0], attention=start.attention, four_bits=four_bits)
    grammar = grammar_of(start.response)
    instruction = instruction_of(start.response, grammar)
    match start.model:
        case None:
            raise RecipeError("no model to start from", "give --from RUN or --model")
        case TinySizes() as sizes:
            model, processor = _tiny(sizes, grammar, instruction, start.max_pixels, start.seed)
            model.set_attn_implementation(start.attention)
        case Pretrained() as pretrained:
            model, processor = models.load_pretrained(*pretrained, start.attention, four_bits)
    if not models.set_pixel_budget(processor, start.min_pixels, start.max_pixels):
        say("`image` has no effect: this model scales every picture to a size of its own")
    return models.Policy(model, processor, grammar, instruction)


def _tiny(sizes: TinySizes, grammar: Grammar, instruction: str | None, pixels: int, seed: int) -> tuple[Any, Any]:
    from prism_cli.tiny_models.tiny import tiny_model, tiny_processor

    place, *towers = sizes
    tags = [mark for tag in grammar.tags for mark in (f"<{tag}>", f"</{tag}>")]
    processor = tiny_processor([*world(place).vocabulary, *tags, *(instruction or "").split()], pixels)
    return tiny_model(processor, *towers, seed=seed), processor


def lora_config(recipe: TrainingStage) -> "LoraConfig | None":
    """The PEFT config of a recipe's `lora`, or None."""
    lora = recipe.lora
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # `all-linear` is PEFT's word for all but the last one, which gives the tokens. Else the vision tower is left
        # out: vLLM can't serve its adapters.
        target_modules="all-linear" if lora.vision else LANGUAGE_LAYERS,
        task_type="CAUSAL_LM",
    )


def with_adapter(run: Run, adapter: Path) -> "Policy":
    """The policy a run started from, unrounded, with adapters that the run trained merged into its weights.

    Args:
        run: The run.
        adapter: Folder of the adapters: one of its checkpoints.

    Raises:
        CheckpointError: what it started from is gone, or was done again since.
    """
    from prism_cli.adapters import merge_adapter
    from prism_cli.recipes.load import load_recipe

    recipe = load_recipe(run.manifest["stage"], run.folder / "recipe.yaml")
    if run.manifest.get("from") != lineage(recipe):
        raise CheckpointError(
            f"{run.folder} started from another state of {recipe.from_} than is there now, so its adapters don't fit",
            "take the run's final model",
        )
    policy = start_policy(recipe, unrounded=True)
    return policy.with_model(merge_adapter(policy.model, adapter))
