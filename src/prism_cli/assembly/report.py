"""The report page of a run, of a pipeline's runs, or of a study: one self-contained HTML file."""

from pathlib import Path

import prism_cli
from prism_cli.assembly.response import grammar_of
from prism_cli.recipes.sections import ResponseSection
from prism_cli.runs.references import read_manifest

PAGE = "report.html"
WRITER = Path(prism_cli.__file__).parent / "report"


def write(folder: Path) -> Path:
    """Writes report.html for one step's folder, a pipeline's or a study's; gives its path."""
    from prism_cli.report.page import write_report
    from prism_cli.rewards.accuracy import is_correct

    return write_report(folder, parse=grammar_of(_response(folder)).parse, is_correct=is_correct)


def render(folder: Path, live: str) -> str:
    """The page of a run that is going, asking for newer versions than `live`; writes nothing."""
    from prism_cli.report import page
    from prism_cli.rewards.accuracy import is_correct

    return page.render(folder, parse=grammar_of(_response(folder)).parse, is_correct=is_correct, live=live)


def _steps(folder: Path) -> list[Path]:
    """The steps of a pipeline, or the one step whose folder it is."""
    here = folder / "run.json"
    if here.is_file() and read_manifest(folder)["stage"] != "run":
        return [folder]
    return [path.parent for path in folder.glob("*/run.json")]


def _response(folder: Path) -> ResponseSection:
    """The response settings of the oldest step here, or of the run it started from; later steps inherit them."""
    manifest = min(map(read_manifest, _steps(folder)), key=lambda manifest: manifest.get("created", ""), default=None)
    while manifest is not None:
        if section := manifest["recipe"].get("response"):
            return ResponseSection.model_validate(section)
        source = manifest.get("from") or {}
        run = source.get("run") or next((run["run"] for run in source.get("runs", ())), "")
        manifest = read_manifest(Path(run)) if run and Path(run).is_dir() else None
    return ResponseSection()
