"""From recipe sections to machinery: policy, rows, teacher, run folder. The only room that knows both sides."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import get_console

from prism_cli.endpoint.budget import Budget
from prism_cli.endpoint.client import EndpointClient, served_model
from prism_cli.endpoint.requests import data_url
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import DataError, RecipeError
from prism_cli.recipes.identity import differences, run_folder, to_dict, to_yaml
from prism_cli.recipes.sections import (
    Data,
    DatasetTeacher,
    EmbeddedTeacher,
    ImageSection,
    OpenAITeacher,
    ResponseSection,
    Section,
    Teacher,
    TinyModel,
    WorldData,
)
from prism_cli.recipes.stages import RolloutStage, Stage, TrainingStage
from prism_cli.responses import Grammar
from prism_cli.runs import Run, open_run, resolve_model, write_atomically
from prism_cli.stages.grammar import grammar_of, instruction_of
from prism_cli.stages.serve import world_app
from prism_cli.teacher.server import ServedEndpoint
from prism_cli.teacher.teachers import ColumnTeacher, EndpointTeacher, TeacherRequest
from prism_cli.teacher.teachers import Teacher as TeacherProtocol
from prism_cli.trainers.arguments import RolloutBatch
from prism_cli.worlds import world

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from datasets import Dataset

    from prism_cli.models import Policy

TEACHER_STORE = "teacher_answers.sqlite"
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

Plan = list[tuple[str, str]]


def open_stage(recipe: Section, stage: str, source: dict[str, Any] | None, fresh: bool, command: Sequence[str]) -> Run:
    """Opens the stage's run folder, new or to be continued."""
    quiet_libraries()
    return open_run(
        run_folder(stage, recipe),
        stage,
        to_dict(recipe),
        to_yaml(recipe),
        differences,
        source=source,
        fresh=fresh,
        command=command,
    )


def already_done(run: Run) -> bool:
    """Whether the stage has nothing left to do; says so."""
    if run.finished:
        get_console().print(f"[dim]{run.folder} is finished; --fresh starts it over[/dim]")
    return run.finished


# Policy --------------------------------------------------------------------------------------------------------------


def check_start(recipe: Stage, stage: str, pending: bool) -> Plan:
    """The plan's lines about where a stage starts.

    Args:
        recipe: The stage's recipe.
        stage: Its command.
        pending: The run in `from` is an earlier step of the same pipeline, so it need not exist yet.

    Raises:
        RecipeError: neither `model` nor `from`.
        CheckpointError: the run in `from` has no model.
    """
    if recipe.from_ is not None:
        return [("starts from", recipe.from_ if pending else str(resolve_model(recipe.from_)[0]))]
    if recipe.model is None:
        raise RecipeError(
            f"`prism {stage}` has no model to start from",
            "give --from RUN (a finished run) or --model (a folder or hub id)",
        )
    if isinstance(recipe.model, TinyModel):
        return [("starts from", "a randomly initialised tiny Qwen3-VL")]
    if recipe.model.path.startswith((".", "/", "~")) and not Path(recipe.model.path).is_dir():
        raise RecipeError(f"model.path: no folder {recipe.model.path}", "give a model folder or a hub id")
    return [("starts from", recipe.model.path)]


def start_policy(recipe: Stage) -> "Policy":
    """Loads or builds the policy a stage starts from, with its grammar, instruction and pixel budget."""
    from prism_cli import models

    if recipe.from_ is not None:
        return models.load_policy(resolve_model(recipe.from_)[0])
    response = recipe.response or ResponseSection()
    image = recipe.image or ImageSection()
    grammar = grammar_of(response)
    instruction = instruction_of(response, grammar)
    if isinstance(recipe.model, TinyModel):
        model, processor = _tiny(recipe.model, grammar, instruction, image.max_pixels, recipe.seed)
    else:
        section = recipe.model
        model, processor = models.load_pretrained(section.path, section.revision, section.dtype, section.attention)
    models.set_pixel_budget(processor, image.min_pixels, image.max_pixels)
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


def lora_config(recipe: Any):
    """The peft config of a recipe's `lora`, or None. The vision tower is left out: vLLM can't serve its adapters."""
    if recipe.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
        task_type="CAUSAL_LM",
    )


# Rows ----------------------------------------------------------------------------------------------------------------


def check_data(section: Data | None, stage: str, field: str = "data") -> Plan:
    """The plan's line about rows.

    Raises:
        RecipeError: no data named.
        DataError: the file is missing.
    """
    if section is None:
        raise RecipeError(
            f"`prism {stage}` has no {field}", f"give --{field.replace('_', '-')} FILE or `{field}:` in the recipe"
        )
    if isinstance(section, WorldData):
        return [(field, f"{section.size} rows of world {section.world} ({section.split}, seed {section.seed})")]
    path = Path(section.path)
    local = section.path.startswith((".", "/", "~")) or path.suffix in DATA_SUFFIXES
    if path.is_dir() or (local and not path.is_file()):
        raise DataError(f"{field}: no file {section.path}", "give a data file: data.path or --data")
    return [(field, section.path + (f", first {section.limit} rows" if section.limit else ""))]


def load_data(section: Data, policy: "Policy") -> "Dataset":
    """The rows a section names, the instruction in front of each prompt."""
    from prism_cli.data.load import load_rows
    from prism_cli.data.rows import dataset, row, with_instruction

    if isinstance(section, WorldData):
        place = world(section.world)
        examples = place.examples(section.split, section.size, section.seed)
        rows = dataset(
            row(
                example.id,
                example.question,
                [example.image],
                answers=[example.answer],
                demonstration=policy.grammar.render(place.demonstration(example, section.seed)),
                truth=example.truth,
            )
            for example in examples
        )
    else:
        rows = load_rows(section.path, section.split, section.limit)
    return with_instruction(rows, policy.instruction)


# Training ------------------------------------------------------------------------------------------------------------


def check_training(recipe: TrainingStage) -> None:
    """Finds combinations that can't train.

    Raises:
        RecipeError: a best checkpoint without an evaluation at every checkpoint, or the reverse.
    """
    checkpoint = recipe.checkpoint
    if checkpoint.evaluate_every is not None and recipe.eval_data is None:
        raise RecipeError(
            "checkpoint.evaluate_every is set but there is no eval_data", "name held-out rows in eval_data"
        )
    if checkpoint.best_by is not None and checkpoint.evaluate_every != checkpoint.every:
        raise RecipeError(
            "checkpoint.best_by compares checkpoints, so each must be evaluated",
            "set checkpoint.evaluate_every to the value of checkpoint.every",
        )
    if isinstance(recipe, RolloutStage):
        rollout_batch(recipe)


def rollout_batch(recipe: RolloutStage, processes: int = 1) -> RolloutBatch:
    """How a step's rollouts are cut up.

    Raises:
        RecipeError: they don't divide.
    """
    batch = RolloutBatch(
        recipe.prompts_per_step,
        recipe.rollouts,
        recipe.micro_batch,
        processes,
        recipe.max_response_tokens,
        recipe.temperature,
    )
    try:
        batch.arguments()
    except ValueError as error:
        raise RecipeError(str(error), "choose a micro_batch that divides prompts_per_step × rollouts") from None
    return batch


# Teacher -------------------------------------------------------------------------------------------------------------


def check_teacher(section: Teacher, stage: str) -> Plan:
    """The plan's line about the teacher.

    Raises:
        RecipeError: an endpoint or model name is missing.
    """
    if isinstance(section, DatasetTeacher):
        return [("teacher", "answers from the data's teacher_response column")]
    if isinstance(section, EmbeddedTeacher):
        return [("teacher", f"world {section.world} ({section.variant}), served on 127.0.0.1")]
    if section.endpoint is None:
        raise RecipeError(
            f"`prism {stage}` has no teacher",
            "give --teacher-endpoint URL, or `teacher: {type: dataset}` when the data holds teacher answers",
        )
    return [("teacher", f"{section.model or 'the model'} at {section.endpoint}, key from ${section.api_key_env}")]


class TeacherDesk:
    """Asks a teacher about rows of one data set, with the images' bytes as they were read.

    Args:
        teacher: Whom to ask.
        rows: The data sets the rows are from, by id.

    Raises:
        DataError: two different rows have one id, so one would get the other's answer.
    """

    def __init__(self, teacher: TeacherProtocol, *rows: "Dataset"):
        from datasets import Image, List

        self.teacher = teacher
        self._sources: dict[str, tuple[Any, int]] = {}
        for data in rows:
            raw = data.cast_column("images", List(Image(decode=False)))
            for index, id in enumerate(data["id"]):
                if id in self._sources and self._row(id) != raw[index]:
                    raise DataError(
                        f"two rows have the id {id}, one in each data set", "give each row an `id` of its own"
                    )
                self._sources[id] = (raw, index)

    def prefetch(self, rows: Sequence[dict]) -> None:
        """Starts asking about rows, and returns at once."""
        self.teacher.prefetch([self._request(row["id"]) for row in rows])

    def answers(self, rows: Sequence[dict]) -> list[str]:
        """The teacher's texts, in order."""
        return [answer.text for answer in self.teacher.answers([self._request(row["id"]) for row in rows])]

    def image_url(self, id: str) -> str | None:
        """A row's first picture as a data URL, or None."""
        images = self._request(id).images
        return data_url(images[0]) if images else None

    def _request(self, id: str) -> TeacherRequest:
        row = self._row(id)
        return TeacherRequest(row["prompt"], tuple(image["bytes"] for image in row["images"]), row=id)

    def _row(self, id: str) -> dict[str, Any]:
        data, index = self._sources[id]
        return data[index]


@contextmanager
def teaching(section: Teacher, grammar: Grammar, run: Run, *rows: "Dataset") -> Iterator[TeacherDesk]:
    """The teacher a section names, ready to be asked about rows; its endpoint, if ours, runs as long as the context.

    What it was asked is added to the run's teacher.json however the context ends, so that caps hold over restarts.

    Args:
        section: Which teacher.
        grammar: What an embedded teacher writes.
        run: Whose usage counts.
        rows: The data sets it will be asked about.
    """
    if isinstance(section, DatasetTeacher):
        answers = {id: text for data in rows for id, text in zip(data["id"], data["teacher_response"], strict=True)}
        yield TeacherDesk(ColumnTeacher(answers), *rows)
        return
    path = run.folder / "teacher.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with ExitStack() as stack:
        budget = _budget(section, before)
        stack.callback(lambda: write_atomically(path, json.dumps(_added(before, budget.summary()), indent=2)))
        store = AnswerStore(_store_path(section, run.folder.parent))
        stack.callback(store.close)
        teacher = EndpointTeacher(_client(section, grammar, store, budget, stack))
        stack.callback(teacher.close)
        yield TeacherDesk(teacher, *rows)


def _budget(section: OpenAITeacher | EmbeddedTeacher, before: dict[str, Any]) -> Budget:
    cap = section.max_calls if isinstance(section, OpenAITeacher) else None
    return Budget(max_calls=None if cap is None else max(0, cap - before.get("calls", 0)))


def _added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Usage of earlier starts and this one; what is not known (a price) stays unknown."""
    return {name: value if value is None else value + (before.get(name) or 0) for name, value in now.items()}


def _store_path(section: OpenAITeacher | EmbeddedTeacher, folder: Path) -> Path:
    path = Path(section.store) if isinstance(section, OpenAITeacher) else folder / TEACHER_STORE
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _client(
    section: OpenAITeacher | EmbeddedTeacher, grammar: Grammar, store: AnswerStore, budget: Budget, stack: ExitStack
) -> EndpointClient:
    if isinstance(section, EmbeddedTeacher):
        model = f"{section.world}-{section.variant}"
        server = stack.enter_context(ServedEndpoint(world_app(section.world, section.variant, grammar)))
        return EndpointClient(server.url, model, store=store, temperature=0.0, max_tokens=256, budget=budget)
    assert section.endpoint is not None, "check_teacher refuses a teacher without an endpoint"
    # Asked first because it fails at once when nobody listens; a question would be retried for a while.
    served = served_model(section.endpoint, section.api_key_env) if section.model is None else section.model
    return EndpointClient(
        section.endpoint,
        served,
        store=store,
        api_key_env=section.api_key_env,
        temperature=section.temperature,
        max_tokens=section.max_tokens,
        concurrency=section.concurrency,
        budget=budget,
    )


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
    # What it logs as an error it also raises, and that is told with where and what to do.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|peft)(\.|$)")


def progress_callback(description: str, total: int) -> tuple[Any, Callable[[int], None]]:
    """A rich progress bar and the function that moves it to a count."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=get_console(), transient=True)
    task = bar.add_task(description, total=total)
    return bar, lambda done: bar.update(task, completed=done)
