"""`prism eval`: how good, and how far from the teacher, one or several runs are on the same questions."""

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import get_console

from prism_cli.errors import RecipeError
from prism_cli.recipes.sections import WorldData
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.responses import Response
from prism_cli.runs import Run, read_manifest, resolve_model, write_atomically
from prism_cli.stages import build, checks
from prism_cli.stages.checks import Plan
from prism_cli.stages.grammar import grammar_ahead
from prism_cli.stages.teaching import teaching
from prism_cli.worlds import world

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy

Verdicts = dict[str, float]


def check(recipe: EvalRecipe, pending: bool = False) -> Plan:
    """What would be done; finds what is wrong without a model.

    Args:
        recipe: The resolved recipe.
        pending: The runs are earlier steps of the same pipeline and need not exist yet.

    Raises:
        PrismError: see the `check_…` functions.
    """
    if not recipe.runs:
        raise RecipeError("`prism eval` has no run to evaluate", "name one or more: prism eval runs/sft runs/align")
    if not recipe.greedy and not recipe.samples:
        raise RecipeError("greedy is off and samples is 0, so nothing would be generated", "set samples or greedy")
    if not pending:
        run_names(recipe.runs)
    plan = [("evaluates", reference) for reference in recipe.runs]
    plan += checks.check_data(recipe.data, "eval")
    if recipe.teacher is not None:
        plan += checks.check_teacher(recipe.teacher, "eval", grammar_ahead(recipe))
    how = f"{recipe.samples} samples at temperature {recipe.temperature}" + (", and greedy" if recipe.greedy else "")
    return [*plan, ("a question", how)]


def run(recipe: EvalRecipe, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues the evaluation; gives its folder.

    Raises:
        PrismError: with the cure in its hint.
    """
    check(recipe)
    source = {"runs": [resolve_model(reference)[1] for reference in recipe.runs]}
    run = build.open_stage(recipe, "eval", source, fresh, command)
    if not build.already_done(run):
        with run.working():
            names = run_names(recipe.runs)
            for name, reference in names.items():
                path = run.folder / f"samples-{name}.jsonl"
                if not path.exists():
                    lines = _evaluate(recipe, name, reference, run)
                    write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in lines))
            summary = _summary(recipe, names, run.folder)
            write_atomically(run.folder / "summary.json", json.dumps(summary, indent=2))
    from prism_cli.report.summary_table import summary_table

    get_console().print(summary_table(json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))))
    return run.folder


def run_names(references: Sequence[str]) -> dict[str, str]:
    """Run id → reference; an id that two runs share is written with its run's name."""
    manifests = [read_manifest(Path(resolve_model(reference)[1]["run"])) for reference in references]
    checkpoints = [resolve_model(reference)[1]["checkpoint"] for reference in references]
    marks = ["" if checkpoint is None else f"@{checkpoint}" for checkpoint in checkpoints]
    ids = [manifest["id"] + mark for manifest, mark in zip(manifests, marks, strict=True)]
    named = [
        f"{manifest['name']}-{id}" if ids.count(id) > 1 else id for manifest, id in zip(manifests, ids, strict=True)
    ]
    if repeated := {name for name in named if named.count(name) > 1}:
        raise RecipeError(f"runs are named alike: {', '.join(sorted(repeated))}", "name each run once")
    return dict(zip(named, references, strict=True))


# Sampling ------------------------------------------------------------------------------------------------------------


def _evaluate(recipe: EvalRecipe, name: str, reference: str, run: Run) -> list[dict[str, Any]]:
    """One line a question: its greedy and sampled responses with their verdicts."""
    from prism_cli.evaluation.sampling import mean_log_likelihood, multimodal, sample_responses
    from prism_cli.models import device, load_policy, placeholder_ids

    policy = load_policy(resolve_model(reference)[0])
    policy.model.to(device())
    rows: Any = build.load_data(recipe.data, policy)
    conversations = [multimodal(row["prompt"], row["images"]) for row in rows]
    taught = _teacher_texts(recipe, policy, rows, run)
    judge = _judge(recipe, policy, rows, taught)
    lines: list[dict[str, Any]] = [{"id": id, "samples": []} for id in rows["id"]]
    passes = [("greedy", 0.0, 0)] if recipe.greedy else []
    passes += [("samples", recipe.temperature, recipe.seed * 1000 + k) for k in range(recipe.samples)]
    bar, moved = build.progress_callback(f"eval {name}", len(passes) * len(rows))
    with bar:
        for number, (kind, temperature, seed) in enumerate(passes):
            done_before = number * len(rows)
            responses = sample_responses(
                policy.model,
                policy.processor,
                conversations,
                max_tokens=recipe.max_response_tokens,
                temperature=temperature,
                seed=seed,
                suppress=placeholder_ids(policy.processor),
                batch_size=recipe.batch_size,
                on_batch=lambda done, before=done_before: moved(before + done),
            )
            for index, response in enumerate(responses):
                verdict = {"text": response.text, **judge(index, response.text), "length": len(response.token_ids)}
                if kind == "greedy":
                    lines[index]["greedy"] = verdict
                else:
                    lines[index]["samples"].append(verdict)
    if taught is not None:
        known = [index for index, text in enumerate(taught) if text is not None]
        heard, texts = [conversations[index] for index in known], [taught[index] or "" for index in known]
        values = mean_log_likelihood(policy.model, policy.processor, heard, texts, recipe.batch_size)
        for index, value in zip(known, values, strict=True):
            lines[index]["teacher_logprob"] = value
    return lines


def _teacher_texts(recipe: EvalRecipe, policy: "Policy", rows: "Dataset", run: Run) -> list[str | None] | None:
    """The teacher's answers, None for questions it failed on; None without a teacher."""
    if recipe.teacher is None:
        return None
    origin = {"instruction": policy.instruction, "data": recipe.data}
    with teaching(recipe.teacher, policy.grammar, run, rows, **origin) as desk:
        return desk.answers([{"id": id} for id in rows["id"]])


def _judge(
    recipe: EvalRecipe, policy: "Policy", rows: "Dataset", taught: list[str | None] | None
) -> Callable[[int, str], Verdicts]:
    """A function of a row's index and a response's text that gives its verdicts, each 0 or 1."""
    from prism_cli.rewards.accuracy import is_correct

    questions, answers = [prompt[-1]["content"] for prompt in rows["prompt"]], rows["answers"]
    truths = rows["truth"]
    place = world(recipe.data.world) if isinstance(recipe.data, WorldData) else None
    captions = [_caption(policy.grammar.parse(text or "")) for text in taught] if taught else None

    def verdicts(index: int, text: str) -> Verdicts:
        response = policy.grammar.parse(text)
        found: Verdicts = {}
        if answers[index]:
            right = response.answer is not None and is_correct(response.answer, answers[index], questions[index])
            found["accuracy"] = float(right)
        found["well_formed"] = float(response.well_formed)
        if place is not None:
            known = place.judge(response.blocks, questions[index], truths[index])
            found |= {part: float(known[part]) for part in ("perception", "reasoning")}
        if captions is not None and captions[index] is not None:
            found["caption_distance"] = float(_caption(response) != captions[index])
        return found

    return verdicts


def _caption(response: Response) -> str | None:
    """The first part's text when there are several parts; None when malformed or there is but one part."""
    return next(iter(response.parts.values())) if len(response.parts) > 1 else None


# Summary -------------------------------------------------------------------------------------------------------------


def _summary(recipe: EvalRecipe, names: dict[str, str], folder: Path) -> dict[str, Any]:
    """Every metric of every run with its interval, and paired differences between all runs."""
    from prism_cli.evaluation.intervals import mean_interval, paired_difference

    values = {name: read_samples(folder / f"samples-{name}.jsonl") for name in names}
    runs = []
    for name, reference in names.items():
        source = Path(resolve_model(reference)[1]["run"])
        metrics = {metric: mean_interval(by_question)._asdict() for metric, by_question in values[name].items()}
        runs.append({"id": name, "path": str(source), "stage": read_manifest(source)["stage"], "metrics": metrics})
    pairs = []
    for a, b in combinations(names, 2):
        for metric in values[a]:
            if metric in values[b]:
                found = paired_difference(values[a][metric], values[b][metric])
                pairs.append(
                    {"a": a, "b": b, "metric": metric, "difference": found.value, "low": found.low, "high": found.high}
                )
    settings = {
        "questions": len(next(iter(values[next(iter(names))].values()))),
        "samples": recipe.samples,
        "temperature": recipe.temperature,
        "seed": recipe.seed,
    }
    return {"settings": settings, "runs": runs, "pairs": pairs}


def read_samples(path: Path) -> dict[str, list[list[float]]]:
    """Metric → for each question the values of its responses, from a samples file."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[list[float]]] = {}
    for kind, suffix in (("greedy", "greedy"), ("samples", "sampled")):
        responses = [line.get(kind) or [] for line in lines]
        responses = [r if isinstance(r, list) else [r] for r in responses]
        metrics = dict.fromkeys(k for question in responses for r in question for k in r if k != "text")
        for metric in metrics:
            found[f"{metric}/{suffix}"] = [[r[metric] for r in question if metric in r] for question in responses]
    if any("teacher_logprob" in line for line in lines):
        found["teacher_logprob"] = [[line["teacher_logprob"]] if "teacher_logprob" in line else [] for line in lines]
    return found
