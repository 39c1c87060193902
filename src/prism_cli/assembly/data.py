"""The rows of a recipe: its data section as sources that load, look ahead and describe themselves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prism_cli.data.file_rows import FileRows, Needs
from prism_cli.errors import RecipeError
from prism_cli.recipes.sections import Data, FileData, MixtureData, WorldData
from prism_cli.responses import ResponseSettings
from prism_cli.rewards.accuracy import is_correct
from prism_cli.worlds import WORLD_BLOCKS, world

if TYPE_CHECKING:  # datasets costs seconds to import, and --dry-run needs none
    from datasets import Dataset


def resolve_data(section: Data | None) -> "RowSource":
    """The source of a section's rows.

    Raises:
        RecipeError: there is no section.
    """
    match section:
        case None:
            raise RecipeError("the recipe names no data", "give --data FILE or `data:` in the recipe")
        case MixtureData():
            shares = {name: Share(source.weight, source.count) for name, source in section.sources.items()}
            return Mixture({name: (share, resolve_data(section.sources[name])) for name, share in shares.items()})
        case WorldData():
            return WorldRows(section.world, section.split, section.size, section.seed)
        case FileData():
            bounds = (section.limit, section.allow_urls, section.on_bad_row, section.stream)
            return FileRows(section.path, section.format, *bounds, is_correct)


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
    return resolve_data(section).load(settings, needs, taught_by_column)


def streamed_file(section: Data | None) -> FileRows | None:
    """The file whose rows are used as they flow; None where all are read first."""
    source = resolve_data(section)
    return source if isinstance(source, FileRows) and source.streamed else None


def rows_ahead(section: Data, settings: ResponseSettings, count: int | None) -> Iterator[dict[str, Any]]:
    """Rows as they are read, one by one: looking prepares nothing on disk. Rows that can't be used are passed over.

    Args:
        section: Which rows.
        settings: See `load_data`.
        count: How many will be looked at, of a mixture of each source; None for all.
    """
    return resolve_data(section).ahead(settings, count)


def world_of(section: Data | None) -> str | None:
    """The picture world that all rows come from, or None."""
    source = resolve_data(section)
    return source.world if isinstance(source, WorldRows) else None


def first_rows(section: Data | None, settings: ResponseSettings, count: int) -> list[dict[str, Any]]:
    """The first rows of a section, of a mixture those of each source, as `rows_ahead` reads them."""
    sources = [source for _, _, source in parts(resolve_data(section))]
    share = -(-count // len(sources))
    return [row for source in sources for row in islice(source.ahead(settings, share), share)][:count]


def parts(source: "RowSource", field: str = "data") -> "list[tuple[str, Share | None, RowSource]]":
    """The sources of a mixture, or a source alone: recipe key, share, source."""
    if not isinstance(source, Mixture):
        return [(field, None, source)]
    return [(f"{field}.sources.{name}", share, one) for name, (share, one) in source.sources.items()]


# Sources -------------------------------------------------------------------------------------------------------------


class Share(NamedTuple):
    """A source's part of a mixture: a weight relative to the others', or a number of rows."""

    weight: float | None
    count: int | None

    def __str__(self) -> str:
        return f"{self.count} of" if self.count is not None else f"weight {self.weight:g} of"


@dataclass(frozen=True)
class WorldRows:
    """Rows drawn from a picture world; see the fields of `WorldData`."""

    world: Literal["shapes"]
    split: Literal["train", "tune", "test"]
    size: int
    seed: int
    streamed = False

    @property
    def names(self) -> list[str]:
        """Its name, for a card."""
        return [f"world {self.world}"]

    def describe(self) -> str:
        """`24 rows of world shapes (train, seed 0)`."""
        return f"{self.size} rows of world {self.world} ({self.split}, seed {self.seed})"

    def load(self, settings: ResponseSettings, needs: Needs | None, taught_by_column: bool) -> "Dataset":
        """See `load_data`; a world's rows serve every stage."""
        from prism_cli.data.rows import dataset, row, with_instruction

        place = world(self.world)
        if unknown := set(settings.grammar.tags) - WORLD_BLOCKS:
            raise RecipeError(
                f"world {self.world} writes {', '.join(sorted(WORLD_BLOCKS))}, not {', '.join(sorted(unknown))}",
                "declare response.parts with these tags, or take other data",
            )
        rows = dataset(
            row(
                example.id,
                example.question,
                [example.image],
                answers=[example.answer],
                demonstration=settings.grammar.render(place.demonstration(example, self.seed)),
                caption=example.caption,
                truth=example.truth,
            )
            for example in place.examples(self.split, self.size, self.seed)
        )
        return with_instruction(rows, settings.instruction)

    def ahead(self, settings: ResponseSettings, count: int | None) -> Iterator[dict[str, Any]]:
        """See `rows_ahead`."""
        from prism_cli.data.rows import raw_rows

        size = self.size if count is None else min(self.size, count)
        yield from raw_rows(replace(self, size=size).load(settings, None, False))


@dataclass(frozen=True)
class Mixture:
    """Several sources, interleaved: name → share and source."""

    sources: "dict[str, tuple[Share, RowSource]]"
    world = None
    streamed = False

    @property
    def names(self) -> list[str]:
        """Names of its sources, for a card."""
        return list(self.sources)

    def describe(self) -> str:
        """Shares and sources."""
        return "; ".join(f"{share} {source.describe()}" for share, source in self.sources.values())

    def load(self, settings: ResponseSettings, needs: Needs | None, taught_by_column: bool) -> "Dataset":
        """See `load_data`."""
        from prism_cli.data.mixture import mix

        rows = {name: source.load(settings, needs, taught_by_column) for name, (_, source) in self.sources.items()}
        weights = {name: share.weight for name, (share, _) in self.sources.items() if share.weight is not None}
        counts = {name: share.count for name, (share, _) in self.sources.items() if share.count is not None}
        return mix(rows, weights=weights or None, counts=counts or None, seed=0)

    def ahead(self, settings: ResponseSettings, count: int | None) -> Iterator[dict[str, Any]]:
        """See `rows_ahead`."""
        for _, source in self.sources.values():
            yield from source.ahead(settings, count)


RowSource = FileRows | WorldRows | Mixture
