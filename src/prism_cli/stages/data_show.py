"""`prism data show`: the first rows of a data set as the model reads them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prism_cli.data.examination import CheckedRow, Rules, examine
from prism_cli.data.formats import parse
from prism_cli.data.pictures import inline
from prism_cli.data.reading import Checks, reader_of
from prism_cli.data.sources import RawRow, open_source
from prism_cli.errors import DataError, RecipeError
from prism_cli.report.rows_page import ShownPicture, ShownRow, write_rows_page
from prism_cli.rewards.accuracy import is_correct
from prism_cli.stages.data_reading import Prompt, Reading, instructed, reading_of


def show(
    source: str,
    count: int,
    page: Path,
    *,
    format: str = "auto",
    allow_urls: Sequence[str] = (),
    tokens: str | None = None,
    run: str | None = None,
) -> str:
    """Writes the first rows as an HTML page, with their pictures and as the model reads them; gives their format.

    Args:
        source: A file, folder or hub id.
        count: How many rows.
        page: The file to write.
        format, allow_urls: As `survey.check_source` takes them.
        tokens: Model or run whose processor renders prompts; `run`'s if not given.
        run: Run whose grammar and instruction are used.

    Raises:
        RecipeError: no processor loadable, or the page is a folder.
        DataError: nothing that can be shown.
    """
    if page.is_dir():
        raise RecipeError(f"--output {page} is a folder", "name a file")
    opened, reading = open_source(source, count), reading_of(run, tokens)
    rules = Rules(format, tuple(allow_urls), Checks(None, reading.grammar, is_correct))
    raws = list(opened)
    if not raws:
        raise DataError(f"{source} has no rows", "give a file with at least one row")
    rows = list(examine(raws, rules))
    formats = ", ".join(dict.fromkeys(row.format for row in rows if row.format is not None)) or "unknown"
    write_rows_page(page, source, formats, [_shown(*both, rules, reading) for both in zip(raws, rows, strict=True)])
    return formats


def _shown(raw: RawRow, row: CheckedRow, rules: Rules, reading: Reading) -> ShownRow:
    """A row for the page: what it says, what the model reads, and what is wrong with it."""
    problems = [f"{problem.field}: {problem.what}" for problem in row.problems]
    shown = ShownRow(f"{raw.file}:{raw.number}", row.id, [], [], None, problems)
    if not row.prompt or raw.fields is None or row.format is None:
        return shown
    parsed, reader = parse(row.format, raw.fields), reader_of(raw.folder, rules.allow_urls)
    pictures = [
        ShownPicture(inline(reader.read(reference)), f"{picture.width} × {picture.height} {picture.format}")
        for reference, picture in zip(parsed.images, row.pictures, strict=True)
        if picture.fault is None
    ]
    texts = [(turn["role"], turn["content"]) for turn in parsed.prompt]
    texts += [("accepted answers", " | ".join(parsed.answers))] if parsed.answers else []
    for name in ("demonstration", "teacher_response", "student_response", "caption"):
        if text := getattr(parsed, name):
            texts.append((name.replace("_", " "), text))
    rendered = None
    if reading.processor is not None and len(pictures) == len(parsed.images):
        sizes = [(picture.width, picture.height) for picture in row.pictures]
        rendered = render_prompt(instructed(parsed.prompt, reading.instruction), sizes, reading.processor)
    return shown._replace(pictures=pictures, texts=texts, rendered=rendered)


def render_prompt(prompt: Prompt, sizes: Sequence[tuple[int, int]], processor: Any) -> str:
    """A prompt as the model reads it, each run of image tokens written as `<|image_pad|> × 196`.

    Args:
        prompt: Turns; pictures stand before the first user's text.
        sizes: (width, height) of each picture.
        processor: The model's.
    """
    turns, pictures = [], [{"type": "image"}] * len(sizes)
    for turn in prompt:
        items = pictures if turn["role"] == "user" else []
        pictures = [] if turn["role"] == "user" else pictures
        turns.append({"role": turn["role"], "content": [*items, {"type": "text", "text": turn["content"]}]})
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    counts = iter(
        processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes]).num_image_tokens
        if sizes
        else []
    )
    return re.sub(re.escape(processor.image_token), lambda mark: f"{mark[0]} × {next(counts, '?')}", text)
