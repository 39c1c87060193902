"""Survey of a data set: every row checked by itself, and against every other."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from prism_cli.data.examination import CheckedRow, Rules, examine
from prism_cli.data.overlap import duplicates, overlaps
from prism_cli.data.pool import batches
from prism_cli.data.preflight import Needs, Problem, Verify
from prism_cli.data.reading import Checks
from prism_cli.data.sources import open_source
from prism_cli.errors import DataError
from prism_cli.responses import Grammar

CountTokens = Callable[
    [Sequence[list[dict[str, str]]], Sequence[list[tuple[int, int]]], Sequence[str | None] | None], list[int]
]

DUPLICATE = "duplicate"
"""What a row is that says nothing an earlier one does not."""


class Report(NamedTuple):
    """The result of checking a set.

    Attributes:
        source: As the user named it.
        fingerprint: Of the source when it was checked.
        format: As it was read: one of `formats.FORMATS`, or `auto`.
        formats: File → the formats of its rows, `plain, verl` when they differ; a file is missing when no row tells.
        rows: How many there are.
        problems: In order of the rows.
        sizes: (width, height) → how many pictures.
        encodings: "JPEG" → how many pictures.
        lengths: Tokens of each readable row; empty when they weren't counted.
    """

    source: str
    fingerprint: str
    format: str
    formats: dict[str, str]
    rows: int
    problems: list[Problem]
    sizes: Counter[tuple[int, int]]
    encodings: Counter[str]
    lengths: list[int]

    def by_kind(self, severity: str) -> Counter[str]:
        """Kind → how many problems of that severity."""
        return Counter(problem.kind for problem in self.problems if problem.severity == severity)

    @property
    def unusable(self) -> set[tuple[str, int]]:
        """File and number of the rows with an error."""
        return {(problem.file, problem.row) for problem in self.problems if problem.severity == "error"}


def check_source(
    path: str,
    *,
    format: str = "auto",
    limit: int | None = None,
    allow_urls: Sequence[str] = (),
    needs: Needs | None = None,
    grammar: Grammar | None = None,
    verify: Verify | None = None,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    against: str | None = None,
    processes: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Checks every row of a set and finds all problems at once.

    Args:
        path: As `sources.open_source` takes it.
        format: One of `formats.FORMATS`, or `auto`.
        limit: Only the first rows.
        allow_urls: Hosts pictures may be fetched from.
        needs, grammar, verify: As `preflight.check_row` takes them; `verify` is sent to other processes, so a named
            function.
        count_tokens: Tokens of rows, from their prompts, their pictures' (width, height), and what SFT learns.
        max_tokens: Rows of more tokens are errors.
        against: An evaluation set; rows it has too are errors.
        processes: How many to use beside this one; with 1 this one does the work.
        progress: Called with the number of rows done, first of `against`, then of the set.

    Raises:
        DataError: nothing there, no row in it, a row of `against` can't be read, or a process was killed.
    """
    allowed, done = tuple(allow_urls), 0
    evaluation, unread = [], []
    if against is not None:
        for batch in batches(examine(open_source(against), Rules("auto", allowed), processes)):
            evaluation += map(_without_texts, batch)
            unread += [row.problems[0] for row in batch if row.identity is None]
            progress(done := done + len(batch))
        _refuse_unread(against, len(evaluation), unread)
    source = open_source(path, limit)
    report = Report(path, source.fingerprint(), format, {}, 0, [], Counter(), Counter(), [])
    rules, rows = Rules(format, allowed, Checks(needs, grammar, verify)), []
    for batch in batches(examine(source, rules, processes)):
        rows += map(_without_texts, batch)
        _add(report, batch)
        if count_tokens is not None:
            _count(report, batch, needs == "sft", count_tokens, max_tokens)
        progress(done := done + len(batch))
    if not rows:
        raise DataError(f"{path} has no rows", "give a file with at least one row")
    report.problems.extend(_overlaps(rows, evaluation))
    report.problems.extend(_repeated_ids(_usable(rows, report)))
    report.problems.extend(_duplicates(_usable(rows, report)))
    order = {(row.file, row.number): index for index, row in enumerate(rows)}
    report.problems.sort(key=lambda problem: order[problem.file, problem.row])
    return report._replace(rows=len(rows))


def _refuse_unread(against: str, rows: int, unread: Sequence[Problem]) -> None:
    if not rows:
        raise DataError(f"{against} has no rows to compare with", "give a file with at least one row")
    if unread:
        raise DataError(
            f"{len(unread)} of {rows} rows of {against} can't be compared with; the first: {unread[0]}",
            "mend or drop them: a row that is in both sets could not be told",
        )


def _without_texts(row: CheckedRow) -> CheckedRow:
    """The part of a row that comparing needs, so that a large set fits into memory."""
    return row._replace(problems=[], pictures=[], prompt=[], response=None)


def _add(report: Report, rows: Sequence[CheckedRow]) -> None:
    report.problems.extend(chain.from_iterable(row.problems for row in rows))
    for row in rows:
        known = report.formats.get(row.file, "")
        if row.format is not None and row.format not in known.split(", "):
            report.formats[row.file] = f"{known}, {row.format}" if known else row.format
    pictures = [picture for row in rows for picture in row.pictures if picture.format]
    report.sizes.update((picture.width, picture.height) for picture in pictures)
    report.encodings.update(picture.format for picture in pictures)


def _count(
    report: Report, rows: Sequence[CheckedRow], with_response: bool, count: CountTokens, limit: int | None
) -> None:
    """Counts the tokens of the rows that a processor would take."""
    whole = [row for row in rows if row.prompt and not any(picture.fault for picture in row.pictures)]
    if not whole:
        return
    sizes = [[(picture.width, picture.height) for picture in row.pictures] for row in whole]
    responses = [row.response for row in whole] if with_response else None
    lengths = count([row.prompt for row in whole], sizes, responses)
    report.lengths.extend(lengths)
    for row, length in zip(whole, lengths, strict=True):
        if limit is not None and length > limit:
            what, cure = f"{length} tokens with its pictures, {limit} are allowed", "shorten it, or drop the row"
            report.problems.append(_problem(row, "prompt", what, cure, "error", "too long"))


def _usable(rows: Iterable[CheckedRow], report: Report) -> list[CheckedRow]:
    """Rows without an error so far: a row is no repetition of one that will be dropped."""
    bad = report.unusable
    return [row for row in rows if (row.file, row.number) not in bad]


def _repeated_ids(rows: Iterable[CheckedRow]) -> Iterator[Problem]:
    first: dict[str, CheckedRow] = {}
    for row in rows:
        if (other := first.setdefault(row.id, row)) is not row:
            what = f"{row.id!r} is also the id of {_place(other)}"
            yield _problem(row, "id", what, "give each row an `id` of its own", "error", "repeated id")


def _duplicates(rows: Sequence[CheckedRow]) -> Iterator[Problem]:
    known = [row for row in rows if row.identity]
    for match in duplicates([row.identity for row in known if row.identity]):
        what = f"{_place(known[match.other])} has the same question and pictures"
        cure, kind = "drop one of them", DUPLICATE
        if match.kind == "asked":
            what, cure, kind = f"{what}, but other answers or responses", "see that both are right", "same question"
        yield _problem(known[match.row], "prompt", what, cure, "warning", kind)


def _overlaps(rows: Sequence[CheckedRow], evaluation: Sequence[CheckedRow]) -> Iterator[Problem]:
    known = [row for row in rows if row.identity]
    others = [row for row in evaluation if row.identity]
    found = overlaps([r.identity for r in known if r.identity], [r.identity for r in others if r.identity])
    for match in found:
        row, place = known[match.row], _place(others[match.other])
        if match.kind == "same":
            what = f"{place} of the evaluation set has the same question and pictures"
            yield _problem(
                row, "prompt", what, "drop the row: it would be measured on what it learnt", "error", "overlap"
            )
        elif match.kind == "alike":
            what = f"{place} of the evaluation set asks the same of pictures that look alike, and has other answers"
            yield _problem(row, "images", what, "drop the row if it is a copy", "warning", "look-alike")
        else:
            what = f"{place} of the evaluation set shows this very picture under another question"
            yield _problem(
                row, "images", what, "drop the row if the picture gives the answer away", "warning", "shared picture"
            )


def _place(row: CheckedRow) -> str:
    return f"{row.file}:{row.number}"


def _problem(row: CheckedRow, field: str, what: str, cure: str, severity, kind: str) -> Problem:
    return Problem(row.file, row.number, field, what, cure, severity, kind)
