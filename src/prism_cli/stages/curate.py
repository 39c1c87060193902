"""`prism data curate`: prompts that a policy solves sometimes, for RL, or never, for a teacher."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich import box, get_console
from rich.bar import Bar
from rich.table import Table

from prism_cli.assembly import checks
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import load_data
from prism_cli.assembly.generation import check_sampling, chosen_backend, sampler
from prism_cli.assembly.response import run_settings
from prism_cli.assembly.run_folder import stage_run
from prism_cli.errors import CheckpointError, DataError, RecipeError
from prism_cli.evaluation.pass_rates import Rate, grader, pass_rates, rate_of
from prism_cli.progress import say
from prism_cli.publishing.dataset_card import curation_card
from prism_cli.publishing.lineage import lineage_of, weights_of
from prism_cli.recipes.stages import CurateRecipe
from prism_cli.responses import ResponseSettings
from prism_cli.runs.files import read_lines, write_atomically, write_lines
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model

if TYPE_CHECKING:
    from datasets import Dataset

DATA, ROWS, RATES, SAMPLES, SUMMARY = "data", "rows.jsonl", "rates.jsonl", "samples.jsonl", "summary.json"
HISTOGRAM_LINES, BAR_WIDTH = 20, 32


def check(recipe: CurateRecipe) -> Plan:
    """The plan of a curation; refuses what can be seen to be wrong without a model.

    Raises:
        PrismError: see the `check_…` functions; no run to sample.
    """
    plan = [("samples", str(resolve_model(_run(recipe))[0])), *checks.check_data(recipe.data, "data curate")]
    plan += check_sampling(recipe.generation)
    plan += [("a prompt", f"{recipe.samples} samples at temperature {recipe.temperature:g}")]
    return [*plan, ("keeps", describe_kept(recipe))]


def _run(recipe: CurateRecipe) -> str:
    if recipe.from_ is None:
        raise RecipeError("`prism data curate` has no policy to sample", "give --from RUN, the run that RL starts from")
    return recipe.from_


def describe_kept(recipe: CurateRecipe) -> str:
    """The prompts that are kept: `2 to 6 of 8 right (pass rate 0.2 to 0.8)`."""
    if recipe.keep == "hard":
        return f"prompts with none of {recipe.samples} right"
    (first, last), (low, high) = (recipe.kept_counts[0], recipe.kept_counts[-1]), recipe.band
    counts = f"{first}" if first == last else f"{first} to {last}"
    return f"prompts with {counts} of {recipe.samples} right (pass rate {low:g} to {high:g})"


def run(recipe: CurateRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the sampling, and writes the set; gives the run's folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    model, source = resolve_model(_run(recipe))
    with stage_run("curate", recipe, source, fresh, command) as run:
        if run.finished:
            _say(json.loads((run.folder / SUMMARY).read_text(encoding="utf-8")))
            return run.folder
        settings = run_settings(_run(recipe))
        rows = _each_once(load_data(recipe.data, settings, "rl"))
        _refuse_other_rows(run, rows)
        run.update(policy=run.manifest.get("policy") or _policy(run, model, source))
        rates = _rates(recipe, model, rows, settings, run.folder / SAMPLES)
        summary = _write(recipe, run, settings, rows, rates)
        _say(summary)
        _refuse_nothing(recipe, summary)
    user = "collect" if recipe.keep == "hard" else f"rl --from {recipe.from_}"
    say(f"next     prism {user} --data {run.folder} …")
    return run.folder


def _each_once(rows: "Dataset") -> "Dataset":
    """Rows without those that a mixture repeats."""
    first: dict[str, int] = {}
    for index, id in enumerate(rows["id"]):
        first.setdefault(id, index)
    return rows if len(first) == len(rows) else rows.select(list(first.values()))


def _policy(run: Run, model: Path, source: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's record: the runs that led to it, oldest first, and its weights."""
    *steps, _ = lineage_of(run.folder).steps
    return {**source, "lineage": [step.facts() for step in steps], "weights": weights_of(model)}


def _refuse_other_rows(run: Run, rows: "Dataset") -> None:
    """Keeps samples from being taken for answers to other questions.

    Raises:
        CheckpointError: the data changed since the run began.
    """
    digest = hashlib.sha256()
    for row in cast("Iterable[dict[str, Any]]", rows.select_columns(["id", "prompt", "answers"])):
        digest.update(json.dumps([row["id"], row["prompt"], row["answers"]]).encode())
    if run.manifest.get("rows", digest.hexdigest()) != digest.hexdigest():
        raise CheckpointError(
            f"{run.folder} was sampled on other rows than the data holds now",
            "choose another --output, or start over with --fresh",
        )
    run.update(rows=digest.hexdigest())


def _rates(recipe: CurateRecipe, folder: Path, rows: "Dataset", settings: ResponseSettings, path: Path) -> list[Rate]:
    """Each row's result; where an earlier start sampled all of them, no model is loaded."""
    from prism_cli.evaluation.kept_samples import SamplingPlan
    from prism_cli.models import load_policy
    from prism_cli.rewards.accuracy import is_correct

    lines = read_lines(path)
    if len(lines) == len(rows):
        return [rate_of(line) for line in lines]
    policy = load_policy(folder)
    backend = chosen_backend(recipe.generation, policy)
    plan = SamplingPlan(recipe.temperature, recipe.seed, backend.chunk(recipe.batch_size, recipe.samples))
    sizes = {"max_tokens": recipe.max_response_tokens, "batch_size": recipe.batch_size}
    with sampler(backend, policy, folder, **sizes) as sample:
        return pass_rates(sample, rows, recipe.samples, plan, grader(settings.grammar, is_correct), path)


# The set -------------------------------------------------------------------------------------------------------------


def _write(
    recipe: CurateRecipe, run: Run, settings: ResponseSettings, rows: "Dataset", rates: Sequence[Rate]
) -> dict[str, Any]:
    """Writes rates, the set and its card; gives the summary, which is written last."""
    kept = [index for index, rate in enumerate(rates) if rate.right in recipe.kept_counts]
    shutil.rmtree(run.folder / DATA, ignore_errors=True)  # of another band
    if kept:
        _write_rows(recipe, run.folder / DATA / ROWS, settings, rows.select(kept), [rates[index] for index in kept])
    shares = [{"id": one.id, **_shares(recipe, one), "kept": one.right in recipe.kept_counts} for one in rates]
    write_lines(run.folder / RATES, shares)
    summary = {
        "keep": recipe.keep,
        "band": list(recipe.band),
        "kept_right": recipe.kept_counts,
        "file": f"{DATA}/{ROWS}" if kept else None,
        "prompts": len(rates),
        "kept": len(kept),
        "samples": recipe.samples,
        "prompts_by_right": [sum(rate.right == right for rate in rates) for right in range(recipe.samples + 1)],
        "pass_rate": sum(rate.right for rate in rates) / (recipe.samples * len(rates)),
        "malformed": sum(rate.malformed for rate in rates) / (recipe.samples * len(rates)),
        "temperature": recipe.temperature,
        "max_response_tokens": recipe.max_response_tokens,
        "seed": recipe.seed,
        "policy": run.manifest["policy"],
        "versions": run.manifest["versions"],
    }
    if kept:
        write_atomically(run.folder / DATA / "README.md", curation_card(run, summary))
    write_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2))
    return summary


def _write_rows(
    recipe: CurateRecipe, path: Path, settings: ResponseSettings, rows: "Dataset", rates: Sequence[Rate]
) -> None:
    from prism_cli.data.collected import PromptsFile
    from prism_cli.data.rows import undecoded, without_instruction

    with PromptsFile(path, "pictures") as file:
        for row, rate in zip(cast("Iterable[dict[str, Any]]", undecoded(rows)), rates, strict=True):
            # What a teacher said of it, or is told of it, would be lost to `prism align`.
            of_row = {name: row[name] for name in ("source", "teacher_response", "caption") if row[name]}
            file.write(row["id"], without_instruction(row, settings.instruction), of_row | _shares(recipe, rate))


def _shares(recipe: CurateRecipe, rate: Rate) -> dict[str, float]:
    return {"pass_rate": rate.right / recipe.samples, "malformed": rate.malformed / recipe.samples}


# The histogram -------------------------------------------------------------------------------------------------------


def histogram(summary: Mapping[str, Any]) -> Table:
    """Prompts by how many of their responses were right, as bars for the terminal; those that are kept in green.

    Args:
        summary: What summary.json holds.
    """
    counts, samples = summary["prompts_by_right"], summary["samples"]
    width = samples // HISTOGRAM_LINES + 1
    bins = [range(start, min(start + width, samples + 1)) for start in range(0, samples + 1, width)]
    sizes = [sum(counts[right] for right in one) for one in bins]
    table = Table(f"right of {samples}", "", "prompts", "kept", box=box.SIMPLE_HEAD, caption=_steps(summary))
    table.columns[2].justify = table.columns[3].justify = "right"
    for one, size in zip(bins, sizes, strict=True):
        kept = sum(counts[right] for right in one if right in summary["kept_right"])
        label = f"{one[0]}" if len(one) == 1 else f"{one[0]}–{one[-1]}"
        bar = Bar(max(sizes), 0, size, width=BAR_WIDTH, color="green" if kept else "bright_black")
        table.add_row(label, bar, f"{size:,}", f"{kept:,}" if set(one) & set(summary["kept_right"]) else "")
    return table


def _steps(summary: Mapping[str, Any]) -> str:
    """The precision of the rates, as a caption."""
    from prism_cli.evaluation.intervals import mean_interval

    samples, right = summary["samples"], summary["kept_right"][0]
    true = mean_interval([[float(number < right)] for number in range(samples)])
    return (
        f"{samples} samples a prompt: a pass rate has steps of {1 / samples:.3g}, and {right} of {samples} right is "
        f"what a true rate of {true.low:.2f} to {true.high:.2f} gives (95 %)"
    )


def _say(summary: Mapping[str, Any]) -> None:
    get_console().print(histogram(summary))
    say(f"pass rate {summary['pass_rate']:.1%}, malformed {summary['malformed']:.1%}")
    say(f"kept {summary['kept']:,} of {summary['prompts']:,} prompts")


def _refuse_nothing(recipe: CurateRecipe, summary: Mapping[str, Any]) -> None:
    """Ends in an error where no prompt is kept; the samples stay for another choice.

    Raises:
        DataError: so there is no set.
    """
    if summary["kept"]:
        return
    never, always = summary["prompts_by_right"][0], summary["prompts_by_right"][-1]
    cures = ["give other prompts"] if recipe.keep == "hard" else ["--band 0.1 0.9 (nothing is sampled again)"]
    cures += ["a larger -k, which finds rates nearer to 0 and 1"] * (recipe.keep == "band")
    malformed = summary["malformed"]
    cures += [f"{malformed:.0%} of the responses are malformed: see {SAMPLES}"] * (malformed > 0.5)
    raise DataError(
        f"nothing is kept: of {summary['prompts']:,} prompts none is among {describe_kept(recipe)}; "
        f"{never:,} are never solved, {always:,} always",
        "; ".join(cures),
    )
