"""The model card: what a model is, where it comes from, what was measured, what it is for. Safe to publish."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from prism_cli.publishing.lineage import Evaluation, Lineage, evaluations_of, lineage_of
from prism_cli.publishing.markdown import table, yaml_block
from prism_cli.runs.folder import Run

TITLES = {"sft": "supervised fine-tuning", "align": "alignment to a teacher", "rl": "reinforcement"}
EXAMPLE = """```python
import json
from pathlib import Path
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = Path("FOLDER")  # this folder, downloaded
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
instruction = json.loads((folder / "response.json").read_text())["instruction"]
question = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "How many bars are there?"}]
system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
inputs = processor.apply_chat_template(
    [*system, {"role": "user", "content": question}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
print(processor.decode(model.generate(**inputs, max_new_tokens=1024)[0, inputs["input_ids"].shape[1] :]))
```"""


def model_card(run: Run, tags: Sequence[str], is_local: Callable[[str], bool], checkpoint: int | None = None) -> str:
    """Markdown with YAML front matter as the hub reads it; holds no path, address or key of this machine.

    Args:
        run: The training run.
        tags: The blocks its responses are made of.
        is_local: Whether a data set's name can only mean a local file or folder.
        checkpoint: Step of the checkpoint it is about, or None for the final model.
    """
    manifest, lineage = run.manifest, lineage_of(run.folder, checkpoint)
    own = lineage.steps[-1]
    at = "" if checkpoint is None else f", checkpoint {checkpoint}"
    lines = [
        "---",
        _front_matter(lineage, is_local),
        "---",
        f"# {own.id}: {TITLES[own.stage]}",
        "",
        f"A vision-language model made by `prism {own.stage}` (prism-cli {manifest['versions']['prism-cli']}){at}, "
        f"seed {manifest['seed']}.",
        "",
        "## Lineage",
        *_lineage_lines(lineage),
        "",
        "## Use",
        EXAMPLE,
        "`response.json` holds the system prompt and the grammar it was trained with; `processor_config.json` how many "
        "pixels a picture is scaled to. Leave both as they are: other prompts and sizes are not what it has learned.",
        "",
        "## Intended use and limits",
        *_limits(tags),
        "",
        *_evaluation_lines(list(evaluations_of(run.folder, checkpoint))),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "",
        "## Recipe",
        "Folders, addresses and names of keys are left out.",
        "",
        *yaml_block(own.recipe),
        "",
    ]
    return "\n".join(lines)


def _front_matter(lineage: Lineage, is_local: Callable[[str], bool]) -> str:
    base = _hub_id(lineage.base or "", is_local)
    rows = [_hub_id(name, is_local) for step in lineage.steps for name in step.data]
    card = ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=list(dict.fromkeys(filter(None, rows))) or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["prism", *dict.fromkeys(step.stage for step in lineage.steps)],
    )
    return card.to_yaml()


def _hub_id(name: str, is_local: Callable[[str], bool]) -> str | None:
    """`owner/name`, without the split, configuration or file behind it; None for what lies elsewhere."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)([:@/].*)?", name)
    return match[1] if match and not is_local(name) else None


def _lineage_lines(lineage: Lineage) -> list[str]:
    rows: list[tuple[object, ...]] = [(0, lineage.start, "", "", "", "")]
    for number, step in enumerate(lineage.steps, start=1):
        at = "" if step.checkpoint is None else f", checkpoint {step.checkpoint}"
        measured = ", ".join(f"{name} {value:.4g}" for name, value in step.held_out.items())
        stage = f"`prism {step.stage}` ({step.id}{at})"
        rows.append((number, stage, ", ".join(step.data), step.teacher or "", f"`{step.digest}`", measured))
    return table(("", "stage", "trained on", "teacher", "recipe", "held-out, while training"), rows)


def _limits(tags: Sequence[str]) -> list[str]:
    """Intended use and limits; the same of every model, because no measure here covers them."""
    form = f" in the blocks {', '.join(f'`<{tag}>`' for tag in tags)}" if tags else ""
    return [
        f"For questions about pictures of the kind it was trained on, answered{form}; for research into post-training.",
        "",
        "- What it says of a picture can be wrong and sound right; the reasoning it writes need not be how it came to "
        "its answer.",
        "- It carries the biases and the licences of its base model, of its data and of its teacher: read their terms "
        "before you publish or sell it.",
        "- It was not tested for safety, nor beyond the data named here.",
    ]


def _evaluation_lines(evaluations: list[Evaluation]) -> list[str]:
    lines = []
    for one in evaluations:
        settings = ", ".join(f"{name} {value}" for name, value in one.settings.items() if name != "backends")
        lines += [
            "## Evaluation",
            f"`prism eval` on {', '.join(one.data)} ({settings}), 95 % intervals.",
            "",
            *table(("metric", "value", "interval", "n"), map(metric_row, *zip(*one.metrics.items(), strict=True))),
            "",
        ]
    return lines


def metric_row(name: str, metric: dict[str, Any]) -> tuple[str, str, str, int]:
    """A metric's cells: name, value, interval, n."""
    known = None not in (metric["low"], metric["high"])
    interval = f"{metric['low']:.4g} to {metric['high']:.4g}" if known else ""
    return name, f"{metric['value']:.4g}", interval, metric["n"]
