"""`prism view`: a run's page; of a run that is going, a page that follows it."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from prism_cli.assembly import report
from prism_cli.errors import CheckpointError
from prism_cli.runs.files import is_held
from prism_cli.runs.references import known_runs, read_manifest

RUNS = Path("runs")
# What a page is made of lies at these depths of a step, a pipeline and a study.
MADE_OF = ("*", "*/*", "seed-*/*/*/run.json")
NO_PART = (".html", ".sqlite", ".sqlite-wal", ".sqlite-shm", ".txt")


def find(reference: str | None) -> Path:
    """The folder of a run.

    Args:
        reference: A folder, a name below runs/, `RUN@step id`, or None for the run that was worked on last.

    Raises:
        CheckpointError: there is none.
    """
    if reference is None:
        return _newest()
    base, _, step = reference.partition("@")
    for folder in (Path(base) / step, RUNS / base / step):
        if (folder / "run.json").is_file() or any(folder.glob("*/run.json")):
            return folder
    raise CheckpointError(f"no run in {reference}", known_runs())


def is_going(folder: Path) -> bool:
    """Whether a process works in the folder or in one of its steps now."""
    manifests = [folder / "run.json", *folder.glob("*/run.json")]
    # A manifest alone would call a killed run running.
    return any(
        read_manifest(path.parent)["status"] == "running" and is_held(path.parent)
        for path in manifests
        if path.is_file()
    )


def page(folder: Path) -> Path:
    """The page of a run, written anew where its files are newer, or what writes pages is."""
    path = folder / report.PAGE
    made_of = [*_files(folder), *(path for path in report.WRITER.iterdir() if path.is_file())]
    if not path.is_file() or path.stat().st_mtime < max(made.stat().st_mtime for made in made_of):
        return report.write(folder)
    return path


def serve(folder: Path, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves a page that follows a run, until interrupted.

    Args:
        folder: The run's.
        port: On 127.0.0.1; 0 takes any free one.
        on_ready: Called once with the page's address.

    Raises:
        PrismError: the port is taken or not allowed.
        KeyboardInterrupt: on Ctrl-C.
    """
    from prism_cli.local_server import serve_forever
    from prism_cli.report.follow import create_app

    serve_forever(create_app(lambda: version(folder), lambda now: report.render(folder, now)), port, on_ready)


def version(folder: Path) -> str:
    """A short text that is another one once any file of the run's page has changed."""
    digest = hashlib.sha256()
    for path in _files(folder):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue  # replaced or deleted since it was listed
        digest.update(f"{path} {state.st_mtime_ns} {state.st_size}\n".encode())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    for pattern in MADE_OF:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not path.name.startswith(".") and path.suffix not in NO_PART:
                yield path


def _newest() -> Path:
    manifests = [path for pattern in ("*/run.json", "*/*/run.json") for path in RUNS.glob(pattern)]
    if not manifests:
        raise CheckpointError("there are no runs here", "name a run's folder: prism view DIR")
    folder = max(manifests, key=lambda path: path.stat().st_mtime).parent
    return folder.parent if (folder.parent / "run.json").is_file() else folder
