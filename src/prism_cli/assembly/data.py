"""Rows of a file, a folder or the hub for a stage, read and checked before anything is trained."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from prism_cli.errors import RecipeError
from prism_cli.progress import notice, progress
from prism_cli.recipes.sections import Data, FileData, MixtureData, WorldData
from prism_cli.responses import Grammar, ResponseSettings
from prism_cli.worlds import WORLD_BLOCKS, world

if TYPE_CHECKING:  # torch and datasets cost seconds to import, and --dry-run needs neither
    from datasets import Dataset, IterableDataset

    from prism_cli.data.preflight import Problem
    from prism_cli.responses import Grammar

Needs = Literal["sft", "align", "rl", "eval"]

PREPARED = Path("runs/prepared")
NAMED = 20


def file_rows(
    section: FileData, instruction: str | None, needs: Needs | None = None, teachers: "Grammar | None" = None
) -> "Dataset":
    """All rows of a section that can be used, prepared once for all runs of this folder.

    Args:
        section: Which rows.
        instruction: System message for rows without one.
        needs: The stage they must serve.
        teachers: The form their teacher responses must have, when those will be used.

    Raises:
        DataError: nothing there, or rows that can't be used.
    """
    from prism_cli.data.load import load_rows
    from prism_cli.data.pool import cores

    with progress(f"preparing {section.path}") as on_progress:
        options = _options(section, instruction, needs, teachers)
        loaded = load_rows(**options, cache=PREPARED, processes=cores(), progress=on_progress)
    notice(f"{section.path}: {len(loaded.rows)} rows, {loaded.format}")
    _say_problems(section.path, loaded.problems, loaded.skipped)
    return loaded.rows


def streamed_rows(
    section: FileData,
    instruction: str | None,
    needs: Needs,
    seed: int,
    refuse: Callable[[dict[str, Any]], str | None],
) -> "IterableDataset":
    """Rows of a section, checked as they flow, again and again.

    Args:
        section: Which rows.
        instruction: System message for rows without one.
        needs: The stage they must serve.
        seed: Of their order.
        refuse: Why a row that passed the checks can't be used, or None.

    Raises:
        DataError: nothing there; later, a row that can't be used.
    """
    from prism_cli.data.load import stream_rows

    named = 0

    def skipped(problems: Sequence["Problem"]) -> None:
        nonlocal named
        named += 1
        if named <= NAMED:
            _say_problems(section.path, problems, 1)
        elif named == NAMED + 1:
            notice(f"{section.path}: more rows are left out; they are counted when all were read once")

    def read_once(skipped: int) -> None:
        if skipped > NAMED:
            notice(f"{section.path}: {skipped} rows left out in all")

    options = _options(section, instruction, needs, None)
    return stream_rows(**options, seed=seed, refuse=refuse, on_skipped=skipped, on_pass=read_once)


def _options(
    section: FileData, instruction: str | None, needs: Needs | None, teachers: "Grammar | None"
) -> dict[str, Any]:
    from prism_cli.data.reading import Checks

    verify = None
    if needs in ("rl", "eval"):
        from prism_cli.rewards.accuracy import is_correct as verify

    return {
        "path": section.path,
        "format": section.format,
        "limit": section.limit,
        "allow_urls": section.allow_urls,
        "on_bad_row": section.on_bad_row,
        "checks": Checks(needs, teachers, verify),
        "instruction": instruction,
    }


def _say_problems(path: str, problems: Sequence["Problem"], skipped: int) -> None:
    errors = [problem for problem in problems if problem.severity == "error"]
    if skipped:
        more = [f"… and {len(errors) - NAMED} more"] if len(errors) > NAMED else []
        notice("\n  ".join([f"{path}: {skipped} rows left out", *map(str, errors[:NAMED]), *more]))
    if warnings := len(problems) - len(errors):
        notice(f"{path}: {warnings} warnings; `prism data check {path}` shows them")


def load_data(
    section: Data | None, settings: ResponseSettings, needs: Needs | None = None, taught_by_column: bool = False
) -> "Dataset":
    """The rows a section names, the instruction in front of each prompt.

    Args:
        section: Which rows.
        settings: The grammar of the rows' responses, and the instruction.
        needs: The stage the rows must serve: rows of a file that can't are refused or left out.
        taught_by_column: The rows' own teacher responses will be used, so they must have the grammar's form.

    Raises:
        DataError: rows that can't be used.
        RecipeError: a world that doesn't write the declared parts.
    """
    assert section is not None, "check_data refuses a recipe without data"
    if isinstance(section, MixtureData):
        return _mixture(section, settings, needs, taught_by_column)
    if isinstance(section, WorldData):
        return _world_rows(section, settings)
    return file_rows(section, settings.instruction, needs, settings.grammar if taught_by_column else None)


def _mixture(
    section: MixtureData, settings: ResponseSettings, needs: Needs | None, taught_by_column: bool
) -> "Dataset":
    from prism_cli.data.mixture import mix

    sources = {name: load_data(source, settings, needs, taught_by_column) for name, source in section.sources.items()}
    weights = {name: source.weight for name, source in section.sources.items() if source.weight is not None}
    counts = {name: source.count for name, source in section.sources.items() if source.count is not None}
    return mix(sources, weights=weights or None, counts=counts or None, seed=0)


def _world_rows(section: WorldData, settings: ResponseSettings) -> "Dataset":
    from prism_cli.data.rows import dataset, row, with_instruction

    place = world(section.world)
    if unknown := set(settings.grammar.tags) - WORLD_BLOCKS:
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
            demonstration=settings.grammar.render(place.demonstration(example, section.seed)),
            caption=example.caption,
            truth=example.truth,
        )
        for example in examples
    )
    return with_instruction(rows, settings.instruction)


def raw_rows(rows: "Dataset") -> Iterator[dict[str, Any]]:
    """The rows of `undecoded`, one by one."""
    from prism_cli.data.rows import undecoded

    yield from cast("Iterable[dict[str, Any]]", undecoded(rows))


def has_pictures(rows: "Dataset") -> bool:
    """Whether any row has a picture, told without reading one."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(rows.data["images"])  # pyright: ignore[reportAttributeAccessIssue]
    return bool(pc.max(lengths).as_py())  # pyright: ignore[reportAttributeAccessIssue]


def first_rows(section: Data, settings: ResponseSettings, count: int) -> list[dict[str, Any]]:
    """The first rows of a section, of a mixture those of each source, as `rows_ahead` reads them."""
    if isinstance(section, MixtureData):
        share = -(-count // len(section.sources))
        return [row for source in section.sources.values() for row in first_rows(source, settings, share)][:count]
    return list(islice(rows_ahead(section, settings, count), count))


def rows_ahead(section: Data, settings: ResponseSettings, count: int | None) -> Iterator[dict[str, Any]]:
    """Rows as they are read, one by one: looking prepares nothing on disk. Rows that can't be used are passed over."""
    if isinstance(section, MixtureData):
        for source in section.sources.values():
            yield from rows_ahead(source, settings, count)
    elif isinstance(section, WorldData):
        size = section.size if count is None else min(section.size, count)
        yield from raw_rows(load_data(section.model_copy(update={"size": size}), settings))
    else:
        from prism_cli.data.reading import Checks, RowReader
        from prism_cli.data.sources import open_source

        source = open_source(section.path, section.limit)
        reader = RowReader(source, section.format, section.allow_urls, Checks(), settings.instruction)
        yield from (read.row for read in reader if read.row is not None)


def source_names(section: Data | None) -> list[str]:
    """Names of where the rows come from, for a card."""
    if isinstance(section, MixtureData):
        return list(section.sources)
    return [] if section is None else [section.path if isinstance(section, FileData) else f"world {section.world}"]
