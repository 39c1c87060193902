"""The card that goes with a curated set: a README.md that says which prompts these are, and by whose measure."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.utils import yaml_dump

from prism_cli.publishing.lineage import lineage_of
from prism_cli.runs.folder import Run

ABOUT = {
    "band": "Prompts that a policy solves sometimes, neither never nor always: `prism rl --data` learns from these.",
    "hard": "Prompts that a policy never solved: for a teacher, with `prism collect --data` or `prism align --data`.",
}


def card(run: Run, summary: Mapping[str, Any]) -> str:
    """Markdown with the header a data hub reads; holds no path of this machine.

    Args:
        run: The curation.
        summary: What came of it, as in summary.json.
    """
    lineage, versions = lineage_of(run.folder), run.manifest["versions"]
    *policy, own = lineage.steps
    steps = [f"{step.id}{'' if step.checkpoint is None else f', checkpoint {step.checkpoint}'}" for step in policy]
    low, high = summary["band"]
    by_right = summary["prompts_by_right"]
    lines = [
        "---",
        f"tags: [prism, {'hard' if summary['keep'] == 'hard' else 'rl'}]",
        "configs:",
        "- config_name: default",
        f"  data_files: {summary['file'].rpartition('/')[2]}",
        "---",
        f"# Prompts with {'pass rate 0' if summary['keep'] == 'hard' else f'a pass rate of {low:g} to {high:g}'}",
        "",
        ABOUT[summary["keep"]],
        "`pass_rate` and `malformed` of a row are shares of its responses.",
        "",
        "| | |",
        "|---|---|",
        f"| prompts | {summary['kept']:,} of {summary['prompts']:,} from {', '.join(own.data)} |",
        f"| policy | {' → '.join([lineage.start, *steps])} |",
        *(f"| SHA-256 of {name} | {digest} |" for name, digest in summary["policy"]["weights"].items()),
        f"| responses | {summary['samples']} a prompt at temperature {summary['temperature']:g}, at most "
        f"{summary['max_response_tokens']:,} tokens, seed {summary['seed']} |",
        f"| pass rate | {summary['pass_rate']:.1%} over all prompts; {by_right[0]:,} never solved, {by_right[-1]:,} "
        "always |",
        f"| malformed | {summary['malformed']:.1%} of the responses |",
        f"| made | by `prism data curate` (prism-cli {versions['prism-cli']}), {run.manifest['created'][:10]} |",
        "",
        "## Licence",
        "The pictures and prompts keep the licence of their source.",
        "",
        "## Recipe",
        "```yaml",
        yaml_dump(own.recipe).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)
