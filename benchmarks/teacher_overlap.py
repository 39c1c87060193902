"""How much of a slow teacher's time `prism align` hides behind its own work: `python benchmarks/teacher_overlap.py`.

A tiny policy is aligned to the shapes world's oracle, served on 127.0.0.1 with a delay equal to the time of a rollout:
asked steps ahead (what PRISM does), at the start of the rollout, and only when the answers are needed.
"""

import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

from rich import get_console
from rich.table import Table

from prism_cli.assembly import warmup
from prism_cli.assembly.endpoint import world_app
from prism_cli.assembly.response import grammar_of
from prism_cli.assembly.teacher import TeacherAnswers
from prism_cli.endpoint.store import AnswerStore
from prism_cli.evaluation import showcase
from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.sections import ResponseSection
from prism_cli.stages import align, sft
from prism_cli.teacher.server import ServedEndpoint
from prism_cli.trainers import on_policy_distill
from prism_cli.trainers.on_policy_distill import _is_first
from prism_cli.trainers.rollout import RolloutTrainer

STEPS = 12
WARM = 48  # rows asked about for the warm-up
SFT = "data.size=2000 eval_data=null checkpoint.evaluate_every=null max_steps=120"
ALIGN = (
    f"max_steps={STEPS} data.size=600 eval_data=null discriminator.warmup.pairs={WARM - 16} "
    "discriminator.warmup.held_out=16 "
    "checkpoint.every=1000"
)


# When each row was first asked about, by the clock that the store goes by.
asked: dict[str, float] = {}


def watched(call):
    """A call to the desk that notes when it was made."""

    def noting(desk, rows, *args, **kwargs):
        for row in rows:
            asked.setdefault(row["id"], time.time())
        return call(desk, rows, *args, **kwargs)

    return noting


class Ahead(on_policy_distill.OnPolicyDistillTrainer):
    """What PRISM does, watched."""

    last: "Ahead"

    def __init__(self, *args, **kwargs):
        Ahead.last = self
        self.taken: list[list[str]] = []
        self.rollouts: list[float] = []
        self.waits: list[float] = []
        super().__init__(*args, **kwargs)

    def train(self, *args, **kwargs):
        started = time.monotonic()
        super().train(*args, **kwargs)
        self.seconds = time.monotonic() - started

    def score(self, batch):
        self.taken.append(list(dict.fromkeys(row["id"] for row in batch.rows)))
        super().score(batch)
        self.waits.append(self._pending_metrics["teacher/wait_seconds"][-1])

    def _generate(self, *args):
        started = time.monotonic()
        output = super()._generate(*args)
        self.rollouts.append(time.monotonic() - started)
        return output


class AtRollout(Ahead):
    """Asks when the rollout starts, and waits when it has ended."""

    def _get_train_sampler(self, dataset=None):
        return RolloutTrainer._get_train_sampler(self, dataset)

    def _generate_and_score_completions(self, inputs):
        self.teacher.prefetch([row for row, first in zip(inputs, _is_first(inputs), strict=True) if first])
        return super()._generate_and_score_completions(inputs)


class WhenNeeded(Ahead):
    """Asks when the rollout has ended."""

    def _get_train_sampler(self, dataset=None):
        return RolloutTrainer._get_train_sampler(self, dataset)


def main() -> None:
    """Trains briefly, times a rollout, and prints each way's waits beside the teacher's time."""
    showcase.write_showcase = lambda *args: None  # the same for all
    for name in ("prefetch", "teachable", "answers"):
        setattr(TeacherAnswers, name, watched(getattr(TeacherAnswers, name)))
    logging.disable(logging.WARNING)
    get_console().quiet = True  # the runs' own words
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        start = sft.run(load_recipe("sft", "tiny", [*SFT.split(), f"output={folder / 'sft'}"]))
        delay = statistics.median(_align(folder / "at once", start, 0.0, Ahead).rollouts)
        table = Table("asked", "teacher, s a step", "waited, s a step", "s a step in all", "hidden")
        for label, way in (("2 steps ahead", Ahead), ("at the rollout", AtRollout), ("when needed", WhenNeeded)):
            run = folder / label
            trainer = _align(run, start, delay, way)
            teacher, waited = _teacher_seconds(trainer, run), sum(trainer.waits)
            times = (f"{seconds / STEPS:.3f}" for seconds in (teacher, waited, trainer.seconds))
            table.add_row(label, *times, f"{1 - waited / teacher:.1%}")
    get_console().quiet = False
    get_console().print(f"a rollout takes {delay:.2f} s, and so does each answer; {STEPS} steps")
    get_console().print(table)


def _align(folder: Path, start: Path, delay: float, way: type[Ahead]) -> Ahead:
    """Aligns in one of the ways; gives the trainer that watched itself."""
    asked.clear()
    on_policy_distill.OnPolicyDistillTrainer = way
    first_asked = warmup._first_questions
    if way is not Ahead:
        warmup._first_questions = lambda recipe, rows: []
    with ServedEndpoint(world_app("shapes", "exact", grammar_of(ResponseSection()), delay=delay)) as served:
        store = folder / "store.sqlite"
        teacher = f"teacher={{type: openai, endpoint: {served.url}, model: shapes-exact, check: false, store: {store}}}"
        align.run(load_recipe("align", "tiny", [*ALIGN.split(), teacher, f"from={start}", f"output={folder / 'run'}"]))
    warmup._first_questions = first_asked
    return Ahead.last


def _teacher_seconds(trainer: Ahead, folder: Path) -> float:
    """The teacher's time, summed over steps: from the first question about a step's prompts to the last answer."""
    store = AnswerStore(folder / "store.sqlite")
    came = {answer.row: answer.created for answer in store}
    store.close()
    warm = set(trainer.train_dataset["id"][:WARM])
    steps = ([row for row in rows if row not in warm] for rows in trainer.taken)
    return sum(max(came[row] for row in rows) - min(asked[row] for row in rows) for rows in steps)


if __name__ == "__main__":
    main()
