"""From recipe sections to machinery: policy, rows, teacher, run folder. The only room that knows both sides."""

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import get_console

from prism_cli import processes
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.recipes.identity import differences, run_folder, to_dict, to_yaml
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.section import Section
from prism_cli.recipes.sections import Data, ImageSection, MixtureData, ResponseSection, TinyModel, WorldData
from prism_cli.recipes.stages import Stage
from prism_cli.responses import Grammar
from prism_cli.runs import Run, open_run, resolve_model
from prism_cli.stages.grammar import grammar_of, instruction_of
from prism_cli.stages.rows import Needs, file_rows
from prism_cli.stages.serve import WORLD_BLOCKS
from prism_cli.worlds import world

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from datasets import Dataset

    from prism_cli.models import Policy

# Attention and MLP of the language model, by their names in transformers (SmolVLM calls it text_model).
LANGUAGE_LAYERS = r".*(language|text)_model.*\.(q|k|v|o|gate|up|down)_proj"


def open_stage(
    recipe: Section,
    stage: str,
    source: dict[str, Any] | None,
    fresh: bool,
    command: Sequence[str],
    compared: bool = True,
    growing: Sequence[str] = (),
) -> Run:
    """Opens the stage's run folder, new or to be continued.

    Args:
        recipe: The resolved recipe.
        stage: Its command.
        source: Lineage, see `open_run`.
        fresh: Start over.
        command: The command line, for the record.
        compared: Whether another recipe on the same folder is refused.
        growing: Keys that may have gained since, see `differences`.

    Raises:
        RecipeError: started on another number of processes than the recipe's `launch` says.
        CheckpointError: see `open_run`.
    """
    launch = getattr(recipe, "launch", None)
    _check_processes(stage, launch)
    processes.start()
    quiet_libraries()
    run = processes.from_main(
        lambda: open_run(
            run_folder(stage, recipe),
            stage,
            to_dict(recipe),
            to_yaml(recipe),
            partial(differences, growing=growing) if compared else lambda old, new: [],
            source=source,
            fresh=fresh,
            command=command,
        )
    )
    if launch is not None:
        run.update(launch={"processes": launch.world_size, "nodes": launch.nodes, "zero": launch.zero})
    return run


def _check_processes(stage: str, launch: LaunchSection | None) -> None:
    there = processes.world_size()
    if launch is None and there > 1:
        raise RecipeError(f"`prism {stage}` runs as one process", "start it without torchrun or accelerate launch")
    if launch is None or launch.world_size == there:
        return
    wanted = f"launch.processes {launch.processes} × launch.nodes {launch.nodes} = {launch.world_size}"
    if not processes.launched():
        raise RecipeError(
            f"`prism {stage}`: {wanted} processes, and this is one alone", "start it as the command `prism` does"
        )
    raise RecipeError(
        f"`prism {stage}` was started on {there} processes, and its recipe says {wanted}",
        f"give launch.processes={there // launch.nodes or 1}, or start {launch.world_size}",
    )


def already_done(run: Run) -> bool:
    """Whether the stage has nothing left to do; says so."""
    if run.finished:
        get_console().print(f"{run.folder} is finished; --fresh starts it over", markup=False)
    return run.finished


# Policy --------------------------------------------------------------------------------------------------------------


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
        get_console().print("`image` has no effect: this model scales every picture to a size of its own", markup=False)
    return models.Policy(model, processor, grammar, instruction)


def lineage(recipe: Stage) -> dict[str, Any] | None:
    """What the manifest records of where a stage started."""
    return resolve_model(recipe.from_)[1] if recipe.from_ else None


def _tiny(section: TinyModel, grammar: Grammar, instruction: str | None, pixels: int, seed: int):
    from prism_cli.tiny_policy import tiny_model, tiny_processor

    tags = [mark for tag in grammar.tags for mark in (f"<{tag}>", f"</{tag}>")]
    words = [*world(section.world).vocabulary, *tags, *(instruction or "").split()]
    processor = tiny_processor(words, pixels)
    sizes = {"hidden": section.hidden, "layers": section.layers}
    vision = {"vision_hidden": section.vision_hidden, "vision_layers": section.vision_layers}
    return tiny_model(processor, **sizes, **vision, seed=seed), processor


# Adapters ------------------------------------------------------------------------------------------------------------


def lora_config(recipe: Any):
    """The PEFT config of a recipe's `lora`, or None."""
    if recipe.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        # `all-linear` is PEFT's word for all but the last one, which gives the tokens. Else the eyes are left out: vLLM
        # can't serve their adapters.
        target_modules="all-linear" if recipe.lora.vision else LANGUAGE_LAYERS,
        task_type="CAUSAL_LM",
    )


def _four_bits(recipe: Any) -> bool:
    """Whether the policy's weights are to be held in 4 bits.

    Raises:
        RecipeError: of a tiny model, where it can't be computed, or a judge would be made of such weights.
    """
    lora = getattr(recipe, "lora", None)  # what only samples has none
    if lora is None or lora.bits is None:
        return False
    if isinstance(recipe.model, TinyModel):
        raise RecipeError("lora.bits: a tiny model is too small for 4 bits", "leave lora.bits out")
    from prism_cli.models import refuse_four_bits

    refuse_four_bits()
    judge = getattr(recipe, "discriminator", None)
    if judge is not None and judge.path is None and judge.base is None:
        raise RecipeError(
            "lora.bits: the judge would be made of the policy's weights in 4 bits",
            "name a dense Qwen3-VL in discriminator.base, or a judge in discriminator.path",
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


# Rows ----------------------------------------------------------------------------------------------------------------


def load_data(
    section: Data | None, policy: "Policy", needs: Needs | None = None, taught_by_column: bool = False
) -> "Dataset":
    """The rows a section names, the instruction in front of each prompt.

    Args:
        section: Which rows.
        policy: Its grammar and instruction are read, nothing else.
        needs: The stage the rows must serve: rows of a file that can't are refused or left out.
        taught_by_column: The rows' own teacher responses will be used, so they must have the grammar's form.

    Raises:
        DataError: rows that can't be used.
        RecipeError: a world that doesn't write the declared parts.
    """
    assert section is not None, "check_data refuses a recipe without data"
    if isinstance(section, MixtureData):
        return _mixture(section, policy, needs, taught_by_column)
    if isinstance(section, WorldData):
        return _world_rows(section, policy)
    return file_rows(section, policy.instruction, needs, policy.grammar if taught_by_column else None)


def _mixture(section: MixtureData, policy: "Policy", needs: Needs | None, taught_by_column: bool) -> "Dataset":
    from prism_cli.data.mixture import mix

    sources = {name: load_data(source, policy, needs, taught_by_column) for name, source in section.sources.items()}
    weights = {name: source.weight for name, source in section.sources.items() if source.weight is not None}
    counts = {name: source.count for name, source in section.sources.items() if source.count is not None}
    return mix(sources, weights=weights or None, counts=counts or None, seed=0)


def _world_rows(section: WorldData, policy: "Policy") -> "Dataset":
    from prism_cli.data.rows import dataset, row, with_instruction

    place = world(section.world)
    if unknown := set(policy.grammar.tags) - WORLD_BLOCKS:
        raise RecipeError(
            f"world {section.world} writes {', '.join(sorted(WORLD_BLOCKS))}, not {', '.join(sorted(unknown))}",
            "declare response.parts with these tags, or take other data",
        )
    examples = place.examples(section.split, section.size, section.seed)
    rows = dataset(
        row(
            example.id,
            example.question,
            [example.image],
            answers=[example.answer],
            demonstration=policy.grammar.render(place.demonstration(example, section.seed)),
            caption=example.caption,
            truth=example.truth,
        )
        for example in examples
    )
    return with_instruction(rows, policy.instruction)


# Quiet ---------------------------------------------------------------------------------------------------------------


def quiet_libraries() -> None:
    """Silences the libraries' own progress bars and notices; ours say what matters."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("httpx", "openai", "accelerate", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Each time it is imported, be it by another library, it warns of a machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(_grave)
    # What it logs as an error it also raises, and that is told with where and what to do.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|peft)(\.|$)")


def _grave(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def progress_callback(description: str, total: int) -> tuple[Any, Callable[[int], None]]:
    """A rich progress bar and the function that moves it to a count."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=get_console(), transient=True)
    task = bar.add_task(description, total=total)
    return bar, lambda done: bar.update(task, completed=done)
