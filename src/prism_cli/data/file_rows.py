"""Rows of a file, a folder or the hub as a stage uses them: loaded, streamed, or looked at ahead of a run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prism_cli.progress import notice, progress
from prism_cli.responses import Grammar, ResponseSettings

if TYPE_CHECKING:  # datasets costs seconds to import, and --dry-run needs none
    from datasets import Dataset, IterableDataset

    from prism_cli.data.preflight import Problem, Verify

Needs = Literal["sft", "align", "rl", "eval"]
PREPARED = Path("runs/prepared")
# Rows left out that are named one by one; the others are counted.
NAMED = 20


@dataclass(frozen=True)
class FileRows:
    """Rows of a file, a folder or the hub.

    Attributes:
        path: File, folder or hub id; see `open_source`.
        format: One of FORMATS, or `auto`.
        limit: Read at most this many rows.
        allow_urls: Hosts from which pictures may be fetched.
        on_bad_row: Stop at rows that can't be used, or leave them out.
        streamed: They are used as they flow instead of being read first.
        verify: Whether an answer is one of the accepted ones; asked for stages that verify.
    """

    path: str
    format: str
    limit: int | None
    allow_urls: tuple[str, ...]
    on_bad_row: Literal["stop", "skip"]
    streamed: bool
    verify: "Verify"
    world = None

    @property
    def names(self) -> list[str]:
        """Its name, for a card."""
        return [self.path]

    def describe(self) -> str:
        """Its path, its format and how much of it is read.

        Raises:
            DataError: nothing there, or the first row is in no known format.
        """
        from prism_cli.data.sources import format_ahead

        first = f", first {self.limit} rows" if self.limit else ""
        format = format_ahead(self.path, self.format, strict=self.on_bad_row == "stop")
        return f"{self.path}, {format}{first}{', streamed' if self.streamed else ''}"

    def load(self, settings: ResponseSettings, needs: Needs | None, taught_by_column: bool) -> "Dataset":
        """All rows that can be used, prepared once for all runs of this folder.

        Args:
            settings: The grammar of the rows' responses, and the instruction for rows without one.
            needs: The stage they must serve.
            taught_by_column: Their teacher responses will be used, so they must have the grammar's form.

        Raises:
            DataError: nothing there, or rows that can't be used.
        """
        from prism_cli.data.load import load_rows
        from prism_cli.data.pool import cores

        with progress(f"preparing {self.path}") as on_progress:
            options = self._options(settings.instruction, needs, settings.grammar if taught_by_column else None)
            loaded = load_rows(**options, cache=PREPARED, processes=cores(), progress=on_progress)
        notice(f"{self.path}: {len(loaded.rows)} rows, {loaded.format}")
        _report_problems(self.path, loaded.problems, loaded.skipped)
        return loaded.rows

    def stream(
        self, instruction: str | None, needs: Needs, seed: int, refuse: Callable[[dict[str, Any]], str | None]
    ) -> "IterableDataset":
        """Rows checked as they flow, again and again.

        Args:
            instruction: System message for rows without one.
            needs: The stage they must serve.
            seed: Of their order.
            refuse: Why a row that passed the checks can't be used, or None.

        Raises:
            DataError: nothing there; later, a row that can't be used.
        """
        from prism_cli.data.load import stream_rows

        named = 0

        def on_skipped(problems: "Sequence[Problem]") -> None:
            nonlocal named
            named += 1
            if named <= NAMED:
                _report_problems(self.path, problems, 1)
            elif named == NAMED + 1:
                notice(f"{self.path}: more rows are left out; they are counted when all were read once")

        def on_pass(skipped: int) -> None:
            if skipped > NAMED:
                notice(f"{self.path}: {skipped} rows left out in all")

        options = self._options(instruction, needs, None)
        return stream_rows(**options, seed=seed, refuse=refuse, on_skipped=on_skipped, on_pass=on_pass)

    def ahead(self, settings: ResponseSettings, count: int | None) -> Iterator[dict[str, Any]]:
        """Rows one by one, preparing nothing on disk; those that can't be used are passed over.

        Args:
            settings: The instruction for rows without one.
            count: Unused: no more is read than is taken.
        """
        from prism_cli.data.reading import Checks, RowReader
        from prism_cli.data.sources import open_source

        source = open_source(self.path, self.limit)
        reader = RowReader(source, self.format, self.allow_urls, Checks(), settings.instruction)
        yield from (read.row for read in reader if read.row is not None)

    def _options(self, instruction: str | None, needs: Needs | None, teachers: Grammar | None) -> dict[str, Any]:
        from prism_cli.data.reading import Checks

        verify = self.verify if needs in ("rl", "eval") else None
        return {
            "path": self.path,
            "format": self.format,
            "limit": self.limit,
            "allow_urls": self.allow_urls,
            "on_bad_row": self.on_bad_row,
            "checks": Checks(needs, teachers, verify),
            "instruction": instruction,
        }


def _report_problems(path: str, problems: "Sequence[Problem]", skipped: int) -> None:
    errors = [problem for problem in problems if problem.severity == "error"]
    if skipped:
        more = [f"… and {len(errors) - NAMED} more"] if len(errors) > NAMED else []
        notice("\n  ".join([f"{path}: {skipped} rows left out", *map(str, errors[:NAMED]), *more]))
    if warnings := len(problems) - len(errors):
        notice(f"{path}: {warnings} warnings; `prism data check {path}` shows them")
