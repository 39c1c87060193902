"""Writes rows of data as one HTML page: pictures, texts, and the prompt as the model reads it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prism_cli.runs.files import write_atomically


class ShownPicture(NamedTuple):
    """One picture: a data URL of PNG or JPEG bytes, and what it is."""

    url: str
    caption: str


class ShownRow(NamedTuple):
    """One row.

    Attributes:
        place: File and row.
        id: Its id.
        pictures: Its pictures.
        texts: (label, text): turns, answers, responses.
        rendered: Its prompt as the model reads it, or None.
        problems: What is wrong with it.
    """

    place: str
    id: str
    pictures: list[ShownPicture]
    texts: list[tuple[str, str]]
    rendered: str | None
    problems: list[str]


def write_rows_page(path: Path, source: str, format: str, rows: Sequence[ShownRow]) -> None:
    """Writes the page. It needs no network and runs no script.

    Args:
        path: The file.
        source: The set, as the user named it.
        format: How its rows are written.
        rows: The rows to show.
    """
    environment = Environment(
        loader=PackageLoader("prism_cli.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    style = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    page = environment.get_template("rows_page.html.j2").render(source=source, format=format, rows=rows, style=style)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
