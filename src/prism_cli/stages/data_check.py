"""`prism data check`: a data set checked before anything is trained on it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from prism_cli.data.fix import check_target
from prism_cli.data.pool import cores
from prism_cli.data.preflight import Needs
from prism_cli.data.sources import open_source
from prism_cli.data.survey import Report, check_source
from prism_cli.errors import RecipeError
from prism_cli.rewards.accuracy import is_correct
from prism_cli.stages.data_reading import Prompt, Reading, instructed, reading_of


def check(
    source: str,
    *,
    format: str = "auto",
    limit: int | None = None,
    allow_urls: Sequence[str] = (),
    needs: Needs | None = None,
    tokens: str | None = None,
    max_tokens: int | None = None,
    against: str | None = None,
    run: str | None = None,
    fix: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Checks all rows of a set over all cores.

    Args:
        source: A file, folder or hub id.
        format, limit, allow_urls, needs, max_tokens, against, progress: As `survey.check_source` takes them.
        tokens: Model or run whose processor counts tokens; `run`'s if not given.
        run: Run whose grammar responses must follow.
        fix: Folder that `fix.write_clean` will be asked to write; refused here, before the work, if it can't be.

    Raises:
        RecipeError: `max_tokens` without a processor, or none loadable.
        DataError: nothing that can be checked, or the clean rows can't be written there.
    """
    if fix is not None:
        check_target(source, fix)
    reading = reading_of(run, tokens)
    if max_tokens is not None and reading.processor is None:
        raise RecipeError("--max-tokens is given, but not whose tokens", "give --tokens MODEL, or --from RUN")
    return check_source(
        source,
        format=format,
        limit=limit,
        allow_urls=allow_urls,
        needs=needs,
        grammar=reading.grammar,
        verify=is_correct,
        count_tokens=_counter(reading),
        max_tokens=max_tokens,
        against=against,
        processes=cores(),
        progress=progress,
    )


def expected_rows(source: str, limit: int | None, against: str | None) -> int | None:
    """Number of rows that `check` will look at; None where only reading them would tell."""
    counts = [_count(source, limit), _count(against, None) if against is not None else 0]
    return None if None in counts else sum(count for count in counts if count is not None)


def _count(path: str, limit: int | None) -> int | None:
    opened = open_source(path, limit)
    if (known := opened.count()) is not None or not all(file.suffix == ".jsonl" for file in opened.files):
        return known
    lines = 0
    for file in opened.files:
        with open(file, "rb") as content:
            lines += sum(1 for line in content if line.strip())
    return min(lines, limit or lines) if opened.files else None


def _counter(reading: Reading) -> Callable[..., list[int]] | None:
    if reading.processor is None:
        return None
    from prism_cli.data.lengths import count_tokens

    def count(prompts: Sequence[Prompt], sizes: Sequence, responses: Sequence[str | None] | None) -> list[int]:
        return count_tokens([instructed(p, reading.instruction) for p in prompts], sizes, reading.processor, responses)

    return count
