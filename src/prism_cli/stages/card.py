"""The model card that goes with a stage's final model."""

import json
from pathlib import Path

from prism_cli.runs import Run, read_manifest

TITLES = {"sft": "supervised fine-tuning", "align": "alignment to a teacher", "rl": "reinforcement"}


def model_card(run: Run) -> str:
    """Markdown: what the model is, where it came from, the last metrics, and the whole recipe."""
    manifest = run.manifest
    stage = manifest["stage"]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        f"tags: [prism, {stage}]",
        "---",
        f"# {manifest['id']}: {TITLES[stage]}",
        "",
        f"Made by `prism {stage}` (prism-cli {manifest['versions']['prism-cli']}), seed {manifest['seed']}.",
        "",
        "## Lineage",
        *(f"{number}. {step}" for number, step in enumerate(_lineage(run), start=1)),
        "",
        "## Use",
        "```python",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        'model = AutoModelForImageTextToText.from_pretrained("FOLDER")',
        'processor = AutoProcessor.from_pretrained("FOLDER")',
        "```",
        "`response.json` holds the system prompt and the grammar it was trained with.",
        "",
        "## Last metrics",
        *(f"- {name}: {value:.4g}" for name, value in _last_metrics(run).items()),
        "",
        "## Recipe",
        "```yaml",
        (run.folder / "recipe.yaml").read_text(encoding="utf-8").rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _lineage(run: Run) -> list[str]:
    """The chain of runs, oldest first."""
    manifest, chain, base = run.manifest, [], None
    while manifest is not None:
        chain.append(f"`prism {manifest['stage']}` ({manifest['id']})")
        base = manifest["recipe"].get("model")
        folder = Path(manifest["from"]["run"]) if manifest.get("from") else None
        manifest = read_manifest(folder) if folder and (folder / "run.json").is_file() else None
    return [*([base.get("path", "a randomly initialised tiny Qwen3-VL")] if base else []), *reversed(chain)]


def _last_metrics(run: Run) -> dict[str, float]:
    path = run.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    last = next((line for line in reversed(lines) if not any(name.startswith("eval/") for name in line)), {})
    return {name: value for name, value in last.items() if name not in ("step", "seconds")}
