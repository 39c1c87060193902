"""The card that goes with collected data: a README.md that says what it is and where it came from."""

from collections.abc import Mapping
from typing import Any

from prism_cli.recipes.identity import to_yaml
from prism_cli.recipes.sections import FileData, MixtureData
from prism_cli.recipes.stages import CollectRecipe
from prism_cli.recipes.teachers import EmbeddedTeacher

ABOUT = {
    "demonstrations": "Prompts and a teacher's answers to them: `prism sft --data` learns these.",
    "pairs": "A teacher's answers beside a policy's own, for the warm-up of the discriminator. Right and wrong ones "
    "alike: it is the manner that is judged.",
}


def card(recipe: CollectRecipe, manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Markdown with the header a data hub reads.

    Args:
        recipe: What was asked for.
        manifest: The run's.
        summary: What came of it, as in summary.json.
    """
    kind, rejected, usage = summary["kind"], summary["rejected"], summary["usage"]
    share = summary["kept"] / summary["answers"] if summary["answers"] else 0.0
    cost = "not known: no price was given" if usage["usd"] is None else f"${usage['usd']:,.2f}"
    if isinstance(recipe.teacher, EmbeddedTeacher):
        cost = "nothing"
    lines = [
        "---",
        f"tags: [prism, {kind}]",
        "configs:",
        "- config_name: default",
        f"  data_files: {summary['file'].rpartition('/')[2]}",
        "---",
        f"# {kind.capitalize()} by {summary['teacher']}",
        "",
        ABOUT[kind],
        *([] if summary["complete"] else ["", "**Incomplete**: the collection ended before all were asked."]),
        "",
        "| | |",
        "|---|---|",
        f"| prompts | {summary['prompts']:,} from {_source(recipe)}, {recipe.samples} asked of each |",
        f"| teacher | {_teacher(recipe, summary['teacher'])} |",
        *([f"| policy | {recipe.from_} |"] if recipe.from_ else []),
        f"| kept | {summary['kept']:,} of {summary['answers']:,} answers ({share:.1%}) |",
        *(
            [f"| kept unverified | {summary['unverified']:,}: their rows have no answer |"]
            * bool(summary["unverified"])
        ),
        *(f"| rejected: {reason} | {count:,} |" for reason, count in rejected.items()),
        f"| calls | {usage['calls']:,}, and {usage['cached']:,} answers that were kept from earlier |",
        f"| tokens | {usage['prompt_tokens']:,} read, {usage['completion_tokens']:,} written |",
        f"| cost | {cost} |",
        f"| made | by `prism collect` (prism-cli {manifest['versions']['prism-cli']}), {manifest['created'][:10]} |",
        "",
        "## Licence",
        "The pictures and prompts keep the licence of their source. Whether answers of this model may be used to train "
        "another, and be passed on, is for its provider's terms to say: check them before you do either.",
        "",
        "## Recipe",
        "```yaml",
        to_yaml(recipe).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _source(recipe: CollectRecipe) -> str:
    if isinstance(recipe.data, MixtureData):
        return ", ".join(recipe.data.sources)
    if isinstance(recipe.data, FileData):
        return recipe.data.path
    assert recipe.data is not None, "check_data refuses a recipe without data"
    return f"world {recipe.data.world}"


def _teacher(recipe: CollectRecipe, name: str) -> str:
    if isinstance(recipe.teacher, EmbeddedTeacher):
        return f"{name}, the world's own oracle"
    way = " in batches" if recipe.batch else ""
    return f"{name} at {recipe.teacher.endpoint}{way}, temperature {recipe.teacher.temperature:g}"
