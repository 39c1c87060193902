"""Published benchmarks through lmms-eval: each run's model answers in a process of its own, task by task."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prism_cli.assembly.checks import Plan
from prism_cli.assembly.generation import resolved
from prism_cli.errors import PrismError, RecipeError
from prism_cli.evaluation.benchmark_order import Order
from prism_cli.progress import progress
from prism_cli.recipes.benchmarks import BenchmarksSection
from prism_cli.recipes.stages import EvalRecipe
from prism_cli.recipes.teachers import EndpointSection
from prism_cli.runs.folder import Run
from prism_cli.runs.references import resolve_model

FOLDER = "benchmarks"
# Of the extra `eval`; MathVista's rules want the last.
NEEDED = ("lmms_eval", "Levenshtein")
# Last lines of a failed process's log among which its error is looked for.
LOG_TAIL = 200


def check(section: BenchmarksSection) -> Plan:
    """The plan's lines about benchmarks.

    Raises:
        RecipeError: the tasks' folder is not there, or the LLM judge has no address or key.
    """
    if section.include is not None and not Path(section.include).is_dir():
        raise RecipeError(
            f"benchmarks.include: no folder {section.include}", "give the folder of your tasks' yaml files"
        )
    first = f", first {section.limit} questions" if section.limit else ""
    plan = [("benchmark", f"{task}{first}") for task in section.tasks]
    # No refusal: an evaluation may be looked at where it will not run.
    plan += [("benchmarks need", f"{', '.join(missing)}, not installed here")] if (missing := _missing()) else []
    if (llm_judge := section.llm_judge) is not None:
        if llm_judge.endpoint is None or llm_judge.model is None:
            raise RecipeError("benchmarks.llm_judge needs endpoint and model", "give both, or leave it out")
        if not os.environ.get(llm_judge.api_key_env):
            raise RecipeError(
                f"benchmarks.llm_judge: the environment has no {llm_judge.api_key_env}",
                "export the key under that name, or name another in benchmarks.llm_judge.api_key_env",
            )
        plan.append(
            ("benchmarks' LLM judge", f"{llm_judge.model} at {llm_judge.endpoint}, key from ${llm_judge.api_key_env}")
        )
    return plan


def refuse_if_missing() -> None:
    """Raises RecipeError where lmms-eval, or what its tasks need, is not installed."""
    if missing := _missing():
        raise RecipeError(
            f"benchmarks: not installed here: {', '.join(missing)}",
            "install the extra: pip install 'prism-cli[eval]'",
        )


def _missing() -> list[str]:
    return [module for module in NEEDED if find_spec(module) is None]


def measure(recipe: EvalRecipe, names: Mapping[str, str], run: Run) -> None:
    """Writes benchmarks/<run>/<task>.json for what is not there yet; continues where it was stopped.

    Args:
        recipe: The evaluation; nothing is done where it has no benchmarks.
        names: Evaluated run → where it is.
        run: The evaluation's folder.

    Raises:
        PrismError: lmms-eval failed; the message has its last line.
    """
    section = recipe.benchmarks
    if section is None:
        return
    backend = None if recipe.generation is None else resolved(recipe.generation)
    for name, reference in names.items():
        folder = run.folder / FOLDER / name
        if tasks := [task for task in section.tasks if _result(folder, task, section) is None]:
            order = Order(
                model=str(resolve_model(reference)[0].resolve()),
                folder=str(folder.resolve()),
                tasks=tasks,
                include=section.include,
                limit=section.limit,
                max_response_tokens=section.max_response_tokens,
                batch_size=section.batch_size,
                seed=recipe.seed,
                has_llm_judge=section.llm_judge is not None,
                backend=None if backend is None else backend.to_json(),
                settings=_settings(section),
            )
            _work(name, order, section.llm_judge, folder)


def measured(section: BenchmarksSection, names: Mapping[str, str], folder: Path) -> list[dict[str, Any]]:
    """The summary's `benchmarks`: run, task, metric, value, low, high, questions, failed."""
    results = [(name, _result(folder / FOLDER / name, task, section)) for name in names for task in section.tasks]
    return [{"run": name, **score} for name, result in results if result is not None for score in result["scores"]]


def _settings(section: BenchmarksSection) -> dict[str, Any]:
    """The settings that a benchmark's result depends on beside the model."""
    llm_judge = section.llm_judge
    return {
        "limit": section.limit,
        "max_response_tokens": section.max_response_tokens,
        "llm_judge": None if llm_judge is None else f"{llm_judge.model} at {llm_judge.endpoint}",
    }


def _result(folder: Path, task: str, section: BenchmarksSection) -> dict[str, Any] | None:
    path = folder / f"{task}.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return result if result["settings"] == _settings(section) else None


def _work(name: str, order: Order, llm_judge: EndpointSection | None, folder: Path) -> None:
    """Runs lmms-eval in a process and follows it."""
    from prism_cli.evaluation.lmms import llm_judge_environment
    from prism_cli.models import free_memory

    free_memory()  # what answered this evaluation's own questions leaves the device to that process
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if llm_judge is None:
        environment |= llm_judge_environment(None, None, None)
    else:
        key = os.environ.get(llm_judge.api_key_env)
        environment |= llm_judge_environment(llm_judge.endpoint, llm_judge.model, key)
    log = folder / "log.txt"
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "prism_cli.stages.eval_benchmark_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            code = _follow(process, name, order)
        finally:
            process.kill()
            process.wait()
    if code:
        raise PrismError(
            f"benchmarks of {name}: {_why(log, code)}",
            f"see {log}; data comes from the Hugging Face hub, unless HF_HUB_OFFLINE is set and it is in the cache "
            "(gated sets want HF_TOKEN); what is answered already is kept",
        )


def _follow(process: "subprocess.Popen[str]", name: str, order: Order) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order._asdict()))
    process.stdin.close()
    with progress(f"benchmarks {name}", 1) as on_progress:
        for line in process.stdout:
            report = json.loads(line)
            on_progress(report["done"], report["total"], report["task"])
    return process.wait()


def _why(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    # What lmms-eval tried several times ends in a line that says only that; the one before has the reason.
    errors = [
        line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt): ", line) and "RetryError" not in line
    ]
    return (errors or [f"the process ended with {code}"])[-1][:300]
