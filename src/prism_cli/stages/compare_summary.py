"""The summary of a study: each arm's metrics over seeds, and paired differences from the baseline."""

import json
from pathlib import Path
from typing import Any

from prism_cli.evaluation.study import Values, over_seeds
from prism_cli.evaluation.summary import read_samples
from prism_cli.recipes.pipelines import StudyRecipe
from prism_cli.runs.references import read_manifest


def study_summary(recipe: StudyRecipe, folder: Path) -> dict[str, Any]:
    """Every arm beside the baseline, over the seeds that finished both.

    Per metric: the mean over seeds with its interval, and the difference from the baseline: seed by seed with an
    interval over questions, and its mean with an interval over seeds. `agree` says that every seed's interval lies on
    the same side of zero.
    """
    measured = {seed: _measured(recipe, folder / f"seed-{seed}") for seed in recipe.seeds}
    arms = {}
    for arm in recipe.arms:
        seeds = [seed for seed in recipe.seeds if arm in measured[seed] and recipe.baseline in measured[seed]]
        if not seeds:
            continue
        pairs = [(measured[seed][recipe.baseline], measured[seed][arm]) for seed in seeds]
        names = [
            name for name in recipe.metrics or pairs[0][1] if all(name in values for pair in pairs for values in pair)
        ]
        arms[arm] = {
            "seeds": seeds,
            "metrics": {name: over_seeds([(base[name], values[name]) for base, values in pairs]) for name in names},
            "seconds": sum(_seconds(recipe, folder / f"seed-{seed}", arm) for seed in seeds) / len(seeds),
            "teacher": _teacher(folder, seeds, arm),
        }
    return {"study": recipe.name, "baseline": recipe.baseline, "seeds": list(recipe.seeds), "arms": arms}


def _measured(recipe: StudyRecipe, folder: Path) -> dict[str, Values]:
    """Arm → the samples of its finished evaluation of one seed."""
    measured = {}
    for arm in recipe.arms:
        place = folder / arm / (recipe.measure.id or recipe.measure.stage)
        if (place / "run.json").is_file() and read_manifest(place)["status"] == "finished":
            (samples,) = place.glob("samples-*.jsonl")
            measured[arm] = read_samples(samples)
    return measured


def _seconds(recipe: StudyRecipe, folder: Path, arm: str) -> float:
    """Seconds of an arm's training steps, with those of the steps it starts from beyond the shared ones and of the
    shared warm-ups whose discriminators it takes."""
    warmups = {step.discriminator for step in recipe.arms[arm]} & {step.id or step.stage for step in recipe.shared}
    paths = [*(folder / arm).glob("*/run.json"), *(folder / str(id) / "run.json" for id in warmups)]
    manifests = [read_manifest(path.parent) for path in paths]
    own = sum(manifest.get("seconds", 0.0) for manifest in manifests if manifest["stage"] != "eval")
    return own + sum(_seconds(recipe, folder, other) for other in recipe.arms_before(arm))


def _teacher(folder: Path, seeds: list[int], arm: str) -> dict[str, float]:
    """Calls and dollars of an arm's own training steps, over all seeds."""
    usages = [
        json.loads(path.read_text(encoding="utf-8"))
        for seed in seeds
        for path in (folder / f"seed-{seed}" / arm).glob("*/teacher.json")
        if read_manifest(path.parent)["stage"] != "eval"
    ]
    return {name: sum(usage.get(name) or 0 for usage in usages) for name in ("calls", "usd")}
