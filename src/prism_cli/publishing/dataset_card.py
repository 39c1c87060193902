"""Dataset cards: README.md of collected and of curated data, with the header that a data hub reads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.publishing.lineage import lineage_of
from prism_cli.publishing.markdown import table, yaml_block
from prism_cli.runs.folder import Run

ABOUT_COLLECTED = {
    "demonstrations": "Prompts and a teacher's answers to them: `prism sft --data` learns these.",
    "pairs": "A teacher's answers beside a policy's own, for the warm-up of the discriminator. Right and wrong ones "
    "alike: the discriminator learns the manner.",
}
ABOUT_CURATED = {
    "band": "Prompts that a policy solves sometimes, neither never nor always: `prism rl --data` learns from these.",
    "hard": "Prompts that a policy never solved: for a teacher, with `prism collect --data` or `prism align --data`.",
}
LICENCE = "The pictures and prompts keep the licence of their source."
ANSWERS_LICENCE = (
    "Whether answers of this model may be used to train another, and be passed on, is for its provider's terms to say: "
    "check them before you do either."
)


class Collection(NamedTuple):
    """A collection: its prompts, its teacher, and its recipe.

    Attributes:
        prompts: Names of the prompts' sources.
        samples: Answers wanted a prompt.
        teacher: Its name, where it was asked and how.
        free: It costs nothing.
        policy: The run whose responses stand beside the answers, or None.
        recipe: The recipe as plain values.
    """

    prompts: Sequence[str]
    samples: int
    teacher: str
    free: bool
    policy: str | None
    recipe: dict[str, Any]


def collection_card(collection: Collection, manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The card of demonstrations or pairs.

    Args:
        collection: Prompts, teacher and recipe.
        manifest: The run's.
        summary: What came of it, as in summary.json.
    """
    kind, usage = summary["kind"], summary["usage"]
    incomplete = [] if summary["complete"] else ["", "**Incomplete**: the collection ended before all were asked."]
    rows = [
        ("prompts", f"{summary['prompts']:,} from {', '.join(collection.prompts)}, {collection.samples} asked of each"),
        ("teacher", collection.teacher),
        *([("policy", collection.policy)] if collection.policy else []),
        *_kept_rows(summary),
        ("calls", f"{usage['calls']:,}, and {usage['cached']:,} answers that were kept from earlier"),
        ("tokens", f"{usage['prompt_tokens']:,} read, {usage['completion_tokens']:,} written"),
        ("cost", "nothing" if collection.free else _cost(usage["usd"])),
        ("made", _made("prism collect", manifest)),
    ]
    return _card(
        kind,
        summary["file"],
        [f"# {kind.capitalize()} by {summary['teacher']}", "", ABOUT_COLLECTED[kind], *incomplete],
        rows,
        f"{LICENCE} {ANSWERS_LICENCE}",
        collection.recipe,
    )


def curation_card(run: Run, summary: Mapping[str, Any]) -> str:
    """The card of a curated set: which prompts these are, and by which policy's measure; holds no path of this machine.

    Args:
        run: The curation.
        summary: What came of it, as in summary.json.
    """
    lineage = lineage_of(run.folder)
    *policy, own = lineage.steps
    steps = [f"{step.id}{'' if step.checkpoint is None else f', checkpoint {step.checkpoint}'}" for step in policy]
    low, high = summary["band"]
    by_right, hard = summary["prompts_by_right"], summary["keep"] == "hard"
    responses = (
        f"{summary['samples']} a prompt at temperature {summary['temperature']:g}, at most "
        f"{summary['max_response_tokens']:,} tokens, seed {summary['seed']}"
    )
    solved = f"{by_right[0]:,} never solved, {by_right[-1]:,} always"
    title = f"# Prompts with {'pass rate 0' if hard else f'a pass rate of {low:g} to {high:g}'}"
    shares = "`pass_rate` and `malformed` of a row are shares of its responses."
    rows = [
        ("prompts", f"{summary['kept']:,} of {summary['prompts']:,} from {', '.join(own.data)}"),
        ("policy", " → ".join([lineage.start, *steps])),
        *((f"SHA-256 of {name}", digest) for name, digest in summary["policy"]["weights"].items()),
        ("responses", responses),
        ("pass rate", f"{summary['pass_rate']:.1%} over all prompts; {solved}"),
        ("malformed", f"{summary['malformed']:.1%} of the responses"),
        ("made", _made("prism data curate", run.manifest)),
    ]
    return _card(
        "hard" if hard else "rl",
        summary["file"],
        [title, "", ABOUT_CURATED[summary["keep"]], shares],
        rows,
        LICENCE,
        own.recipe,
    )


def _card(
    tag: str,
    file: str,
    about: Sequence[str],
    rows: Iterable[tuple[str, object]],
    licence: str,
    recipe: dict[str, Any],
) -> str:
    header = [f"tags: [prism, {tag}]", "configs:", "- config_name: default", f"  data_files: {file.rpartition('/')[2]}"]
    facts = table(("", ""), rows)
    end = ["## Licence", licence, "", "## Recipe", *yaml_block(recipe), ""]
    return "\n".join(["---", *header, "---", *about, "", *facts, "", *end])


def _kept_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    share = summary["kept"] / summary["answers"] if summary["answers"] else 0.0
    rows = [("kept", f"{summary['kept']:,} of {summary['answers']:,} answers ({share:.1%})")]
    if summary["unverified"]:
        rows.append(("kept unverified", f"{summary['unverified']:,}: their rows have no answer"))
    return rows + [(f"rejected: {reason}", f"{count:,}") for reason, count in summary["rejected"].items()]


def _cost(usd: float | None) -> str:
    return "not known: no price was given" if usd is None else f"${usd:,.2f}"


def _made(command: str, manifest: Mapping[str, Any]) -> str:
    return f"by `{command}` (prism-cli {manifest['versions']['prism-cli']}), {manifest['created'][:10]}"
