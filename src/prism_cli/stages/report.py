"""The report page of a run, or of a pipeline's runs: one self-contained HTML file."""

from pathlib import Path

from prism_cli.recipes.sections import ResponseSection
from prism_cli.runs import read_manifest
from prism_cli.stages.grammar import grammar_of


def write(folder: Path) -> Path:
    """Writes report.html for one step's folder or a pipeline's; gives its path."""
    from prism_cli.report.page import write_report
    from prism_cli.rewards.accuracy import is_correct

    return write_report(folder, parse=grammar_of(_response(folder)).parse, is_correct=is_correct)


def _response(folder: Path) -> ResponseSection:
    """The response settings of the oldest step here, or of the run it started from; later steps inherit them."""
    steps = [folder] if read_manifest(folder)["stage"] != "run" else [path.parent for path in folder.glob("*/run.json")]
    manifest = min(map(read_manifest, steps), key=lambda manifest: manifest["created"], default=None)
    while manifest is not None:
        if section := manifest["recipe"].get("response"):
            return ResponseSection.model_validate(section)
        source = manifest.get("from") or {}
        run = source.get("run") or next((run["run"] for run in source.get("runs", ())), "")
        manifest = read_manifest(Path(run)) if run and Path(run).is_dir() else None
    return ResponseSection()
