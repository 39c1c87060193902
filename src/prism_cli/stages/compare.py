"""`prism compare`: several variants over the same seeds, in parallel, in one table of paired gains."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich import get_console

from prism_cli.assembly import report
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.run_folder import check_processes, open_stage
from prism_cli.errors import PrismError
from prism_cli.progress import progress, say
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.pipelines import PipelineStep, StudyRecipe
from prism_cli.recipes.steps import StepRecipe, resolve_steps
from prism_cli.report.study_table import study_table
from prism_cli.runs.files import write_atomically
from prism_cli.stages.compare_summary import study_summary
from prism_cli.stages.run import check_step, run_step

SHARED = "shared steps"
TRAINING = ("sft", "align", "rl")


class Job(NamedTuple):
    """The work of one process in one go: the shared steps of a seed, or an arm of it."""

    seed: int
    arm: str

    @property
    def name(self) -> str:
        return f"seed {self.seed}, {self.arm}"


def check(recipe: StudyRecipe, base: Path) -> Plan:
    """The plan; loads every step's recipe.

    Args:
        recipe: The study.
        base: Folder of its file; steps' recipes are relative to it.

    Raises:
        RecipeError: a step's recipe is wrong, or an arm starts from nothing.
    """
    plan = []
    for arm in (SHARED, *recipe.arms):
        steps = job_steps(recipe, base, Job(recipe.seeds[0], arm))
        for step, resolved in steps:
            check_step(step, resolved)
        plan.append((arm, " → ".join(step.id or step.stage for step, _ in steps) or "none"))
    seeds = ", ".join(map(str, recipe.seeds))
    return [*plan, ("seeds", seeds), ("compared with", recipe.baseline)]


def run(recipe: StudyRecipe, base: Path, fresh: bool = False, command: Sequence[str] = ()) -> Path:
    """Runs or continues every arm of every seed; gives the study's folder.

    Raises:
        PrismError: an arm failed; the others were run all the same, and the table has them.
    """
    check(recipe, base)
    folder = run_folder("compare", recipe)
    check_processes("compare")
    named = recipe.model_copy(update={"output": str(folder)})
    # Each step compares the recipe it was run with, so arms and seeds may be added to a study.
    study = open_stage("compare", named, None, fresh, command, lambda there, now: [])
    failed: dict[Job, str] = {}
    try:
        with study.working():
            failed = _run_all(recipe, base, folder)
            summary = study_summary(recipe, folder) | {"failed": {job.name: error for job, error in failed.items()}}
            write_atomically(folder / "study.json", json.dumps(summary, indent=2))
            get_console().print(study_table(summary, get_console().width))
            if failed:
                errors = "\n  ".join(f"{job.name}: {error}" for job, error in failed.items())
                hint = "mend the cause and run the same command again"
                raise PrismError(f"{len(failed)} arm{'s' if len(failed) > 1 else ''} failed:\n  {errors}", hint)
    finally:
        if failed:  # only now does its manifest say so
            report.write(folder)
    return folder


def _processes(recipe: StudyRecipe) -> int:
    from prism_cli.models import device

    return recipe.processes or (os.cpu_count() or 1 if device().type == "cpu" else 1)


def job_steps(recipe: StudyRecipe, base: Path, job: Job) -> list[tuple[PipelineStep, StepRecipe]]:
    """The steps of a job with their resolved recipes; an arm ends with its evaluation."""
    seed_folder = run_folder("compare", recipe) / f"seed-{job.seed}"
    if job.arm == SHARED:
        return resolve_steps(recipe.shared, base, seed_folder, job.seed)
    folder, steps = seed_folder / job.arm, recipe.arms[job.arm]
    earlier = {
        f"{other}/{id}": path
        for other in recipe.arms_before(job.arm)
        for id, path in _folders(recipe.arms[other], seed_folder / other, *TRAINING).items()
    } | _folders(recipe.shared, seed_folder, *TRAINING)
    warmed = _folders(recipe.shared, seed_folder, "warmup")
    trained = earlier | _folders(steps, folder, *TRAINING)
    last = {list(trained)[-1]: list(trained.values())[-1]}
    measured = resolve_steps([recipe.measure], base, folder, None, last)
    return [*resolve_steps(steps, base, folder, job.seed, earlier, warmed), *measured]


def _folders(steps: Sequence[PipelineStep], folder: Path, *stages: str) -> dict[str, Path]:
    """Id → folder of the steps of these stages."""
    return {step.id or step.stage: folder / (step.id or step.stage) for step in steps if step.stage in stages}


def _run_all(recipe: StudyRecipe, base: Path, folder: Path) -> dict[Job, str]:
    """Runs all jobs, an arm once what it starts from is done; gives the failed ones with their errors."""
    failed: dict[Job, str] = {}
    done: set[Job] = set()
    waiting = [Job(seed, arm) for seed in recipe.seeds for arm in (SHARED, *recipe.arms)]
    # A new interpreter a worker: a forked one would inherit torch's threads and locks. Ctrl-C ends it at once.
    pool = ProcessPoolExecutor(
        _processes(recipe),
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
    running: dict[Future[str | None], Job] = {}
    try:
        with progress("arms", len(waiting)) as on_progress:
            while waiting or running:
                for job in [job for job in waiting if done.issuperset(_before(recipe, job))]:
                    waiting.remove(job)
                    running[pool.submit(_work, recipe, base, folder, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, error = running.pop(future), future.result()
                    if error:
                        failed[job] = error
                        waiting = _without_those_after(recipe, waiting, job)
                    else:
                        done.add(job)
                    on_progress(len(recipe.seeds) * (1 + len(recipe.arms)) - len(waiting) - len(running))
                    say(f"{job.name}: {'failed' if error else 'done'}")
    except BrokenProcessPool:
        raise PrismError(
            "a process of the study was killed", "out of memory? set processes=1 and run it again"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def _before(recipe: StudyRecipe, job: Job) -> list[Job]:
    """The jobs that a job starts from."""
    arms = [] if job.arm == SHARED else [SHARED, *recipe.arms_before(job.arm)]
    return [Job(job.seed, arm) for arm in arms]


def _without_those_after(recipe: StudyRecipe, waiting: Sequence[Job], failed: Job) -> list[Job]:
    """The waiting jobs that can still be done; arms stand after those they start from."""
    gone = {failed}
    for job in waiting:
        if gone.intersection(_before(recipe, job)):
            gone.add(job)
    return [job for job in waiting if job not in gone]


def _work(recipe: StudyRecipe, base: Path, folder: Path, job: Job) -> str | None:
    """Does a job in this process, what it prints going to its log; gives the error, or None."""
    place = folder / f"seed-{job.seed}" / ("" if job.arm == SHARED else job.arm)
    place.mkdir(parents=True, exist_ok=True)
    with _printing_to(place / "log.txt"):
        try:
            for step, resolved in job_steps(recipe, base, job):
                run_step(step, resolved)
        except PrismError as error:
            return f"{error}" + (f" ({error.hint})" if error.hint else "")
    return None


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    with open(path, "a", encoding="utf-8") as log:
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = log
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
