"""`prism eval`: how good, and how far from the teacher, one or several runs are on the same questions."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import get_console

from prism_cli.errors import RecipeError
from prism_cli.recipes.sections import WorldData
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.responses import Response, token_pieces
from prism_cli.runs import Run, read_manifest, resolve_model, write_atomically
from prism_cli.stages import attribution, build, checks
from prism_cli.stages.checks import Plan
from prism_cli.stages.grammar import grammar_ahead
from prism_cli.stages.teaching import teaching
from prism_cli.worlds import world

if TYPE_CHECKING:
    from datasets import Dataset

    from prism_cli.models import Policy

Verdicts = dict[str, float]
TEACHER_LOGPROB = "teacher_logprob"


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
    if recipe.attribution is not None:
        plan += _check_attribution(recipe)
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
                if recipe.attribution is not None and not (run.folder / f"attribution-{name}.jsonl").exists():
                    attribution.attribute(recipe, name, reference, run, partial(_teacher_texts, recipe, run))
            summary = _summary(recipe, names, run.folder)
            write_atomically(run.folder / "summary.json", json.dumps(summary, indent=2))
    from prism_cli.report.summary_table import summary_table

    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    get_console().print(summary_table(summary))
    if found := summary.get("attribution"):
        get_console().print(attribution.table(found))
    return run.folder


def _check_attribution(recipe: EvalRecipe) -> Plan:
    """Raises RecipeError where wrong answers can't be attributed."""
    if recipe.attribution == "greedy" and not recipe.greedy:
        raise RecipeError("attribution is of greedy answers and greedy is off", "set greedy=true or attribution=all")
    if (grammar := grammar_ahead(recipe)) is not None:
        attribution.caption_block(grammar)
    return [
        ("attributes", f"{'greedy' if recipe.attribution == 'greedy' else 'all'} wrong answers, each tried 4 times")
    ]


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
    from prism_cli.evaluation.sampling import log_likelihoods, multimodal, sample_responses
    from prism_cli.models import device, load_policy, placeholder_ids

    policy = load_policy(resolve_model(reference)[0])
    policy.model.to(device())
    rows: Any = build.load_data(recipe.data, policy)
    conversations = [multimodal(row["prompt"], row["images"]) for row in rows]
    taught = _teacher_texts(recipe, run, policy, rows)
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
        values = log_likelihoods(policy.model, policy.processor, heard, texts, recipe.batch_size)
        for index, text, of_tokens in zip(known, texts, values, strict=True):
            lines[index] |= _teacher_logprob(policy, text, of_tokens)
    return lines


def _teacher_logprob(policy: "Policy", text: str, of_tokens: list[float]) -> dict[str, float]:
    """Means over the tokens of an answer and of each of its parts, where it has the form of the policy's responses."""
    tokenizer = policy.processor.tokenizer
    pieces = token_pieces(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    places = policy.grammar.split_token_ids(range(len(pieces)), pieces) or {}
    found = {TEACHER_LOGPROB: fmean(of_tokens)}
    if len(places) > 1:
        found |= {f"{TEACHER_LOGPROB}/{part}": fmean(of_tokens[i] for i in at) for part, at in places.items()}
    return found


def _teacher_texts(recipe: EvalRecipe, run: Run, policy: "Policy", rows: "Dataset") -> list[str | None] | None:
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
    summary: dict[str, Any] = {"settings": settings, "runs": runs, "pairs": pairs}
    if recipe.attribution is not None:
        summary["attribution"] = [line for name in names for line in attribution.summed_up(folder, name)]
    return summary


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
    for name in dict.fromkeys(key for line in lines for key in line if key.startswith(TEACHER_LOGPROB)):
        found[name] = [[line[name]] if name in line else [] for line in lines]
    return found
