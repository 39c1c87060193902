"""Measurements during adversarial training: drift from the teacher, shortcut probes, and when to end.

All of them look at the training rollouts beside their teacher answers, so nothing is sampled for them.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prism_cli import processes
from prism_cli.discriminator.inputs import Comparisons
from prism_cli.discriminator.learner import BatchScores, DiscriminatorLearner
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.router import router_loads
from prism_cli.discriminator.shortcuts import PROBES, Scored, either_way, skeleton, swap_images
from prism_cli.evaluation.auc import FEWEST_PROMPTS
from prism_cli.evaluation.drift import drift_auc, separate
from prism_cli.evaluation.intervals import mean_interval, paired_difference
from prism_cli.trainers.drift_stop import DriftStop, is_flat

WATCH_FILE = "watch.json"
# Prompts that a probe compares at least; rollouts of several steps are gathered for them.
MIN_PROBED_PROMPTS = 32
# More than the prompts of a step: numbers prompts so that they are unique in a run.
MAX_STEP_PROMPTS = 100_000


class Pair(NamedTuple):
    """A well-formed rollout beside its prompt's teacher answer.

    Attributes:
        prompt: Number of the prompt, unique in the run.
        teacher: (K,) texts of the parts.
        policy: (K,) likewise.
        scores: (K, 2) the discriminator's scores of teacher and policy.
        swapped: (K, 2) the same beside another prompt's picture; None when not probed, or without another picture.
    """

    prompt: int
    teacher: list[str]
    policy: list[str]
    scores: list[list[float]]
    swapped: list[list[float]] | None


class WatchedLearner:
    """A discriminator's learner that also measures the batches it learns from.

    Args:
        learner: Scores and learns.
        decode: Token ids to text.
        probe_every: Steps between probes for shortcuts, or None.
        stop: When to end, or None.
        seed: Of folds and resampling.

    Attributes:
        flat: Whether drift stopped shrinking.
        steps: Steps taken.
    """

    def __init__(
        self,
        learner: DiscriminatorLearner,
        decode: Callable[[list[int]], str],
        probe_every: int | None = None,
        stop: DriftStop | None = None,
        seed: int = 0,
    ):
        self.learner, self.decode, self.probe_every, self.stop, self.seed = learner, decode, probe_every, stop, seed
        self.flat, self.steps = False, 0
        self._window: list[list[Pair]] = []
        self._measured: list[dict[str, float]] = []

    @property
    def discriminator(self) -> Discriminator:
        """The discriminator that learns."""
        return self.learner.discriminator

    def score(self, batch: Comparisons) -> BatchScores:
        """As the learner does; nothing is measured."""
        return self.learner.score(batch)

    def score_and_update(self, batch: Comparisons) -> BatchScores:
        """As the learner does; the metrics also hold `discriminator/valid_fraction`, `discriminator/router_load/…`, and
        on their steps `drift/<part>` and `shortcuts/<probe>/<part>`."""
        self.steps += 1
        prompts, valid, rollouts = map(sum, zip(*processes.gather(_counts(batch)), strict=True))
        probed = math.ceil(MIN_PROBED_PROMPTS / prompts) if self.probe_every else 0
        probing = self.probe_every is not None and -self.steps % self.probe_every < probed
        # Before the update, so that both readings are by the same weights.
        swapped = self._swapped(batch) if probing else None
        with router_loads(self.discriminator) as loads:
            scored = self.learner.score_and_update(batch)
        metrics = {"discriminator/valid_fraction": valid / rollouts, **loads.metrics()}
        if probing or self.stop:
            length = max(self.stop.every if self.stop else 0, probed)
            self._window = [*self._window, self._everyones(self._pairs(batch, scored, swapped))][-length:]
        if self.stop and self.steps % self.stop.every == 0:
            metrics |= self._measure_drift(self.stop)
        if self.probe_every and self.steps % self.probe_every == 0:
            metrics |= self._probe([pair for step in self._window[-probed:] for pair in step])
        return scored._replace(metrics={**scored.metrics, **metrics})

    def save(self, folder: Path) -> None:
        """Writes the learner, and what was measured; call it on every process."""
        self.learner.save(folder)
        if processes.is_main():  # all have measured the same
            state = {"steps": self.steps, "flat": self.flat, "measured": self._measured, "window": self._window}
            (folder / WATCH_FILE).write_text(json.dumps(state), encoding="utf-8")

    def save_discriminator(self, folder: Path) -> None:
        """As the learner does."""
        self.learner.save_discriminator(folder)

    def close(self) -> None:
        """As the learner does."""
        self.learner.close()

    def load(self, folder: Path) -> None:
        """Continues from a folder that `save` wrote.

        Raises:
            CheckpointError: see the learner.
        """
        self.learner.load(folder)
        state = json.loads((folder / WATCH_FILE).read_text(encoding="utf-8"))
        self.steps, self.flat, self._measured = state["steps"], state["flat"], state["measured"]
        self._window = [[Pair(*pair) for pair in step] for step in state["window"]]

    # Measuring -----------------------------------------------------------------------------------------------------

    def _swapped(self, batch: Comparisons) -> BatchScores | None:
        """Scores beside another prompt's picture; rollouts without one have none."""
        if self.discriminator.kind == "text_only":
            return None
        prompts = swap_images(batch.prompts, self.discriminator.body.config.image_token_id)
        shown = [prompt is not None for prompt in prompts]
        rollouts = [parts if shown[p] else None for parts, p in zip(batch.rollouts, batch.prompt_of, strict=True)]
        shown_prompts = [prompt or own for prompt, own in zip(prompts, batch.prompts, strict=True)]
        return self.learner.score(batch._replace(prompts=shown_prompts, rollouts=rollouts))

    def _pairs(self, batch: Comparisons, scored: BatchScores, swapped: BatchScores | None) -> list[Pair]:
        names, pairs = self.discriminator.parts, []
        for n, (parts, p) in enumerate(zip(batch.rollouts, batch.prompt_of, strict=True)):
            taught = batch.teacher[p]
            if parts is not None and taught is not None:
                teacher, policy = ([self.decode(side[name]) for name in names] for side in (taught, parts))
                beside = None if swapped is None else _scores(swapped, n, p)
                prompt = self.steps * MAX_STEP_PROMPTS + p
                pairs.append(Pair(prompt, teacher, policy, _scores(scored, n, p) or [], beside))
        return pairs

    def _everyones(self, pairs: list[Pair]) -> list[Pair]:
        """The pairs of all processes. A group may lie across them, so a prompt is known by its teacher answer."""
        if not processes.together():
            return pairs
        numbers: dict[tuple[str, ...], int] = {}
        gathered = [pair for share in processes.gather(pairs) for pair in share]
        prompts = [numbers.setdefault(tuple(pair.teacher), len(numbers)) for pair in gathered]
        return [
            pair._replace(prompt=self.steps * MAX_STEP_PROMPTS + n) for pair, n in zip(gathered, prompts, strict=True)
        ]

    def _measure_drift(self, stop: DriftStop) -> dict[str, float]:
        """`drift/<part>` of the rollouts since the last measurement; absent with too few prompts."""
        pairs = [pair for step in self._window[-stop.every :] for pair in step]
        # By its answer: a row seen in two epochs is one prompt, whose texts must not stand on both sides of a fold.
        rows = [tuple(pair.teacher) for pair in pairs]
        drift: dict[str, float] = {}
        if len(set(rows)) >= FEWEST_PROMPTS:
            for k, part in enumerate(self.discriminator.parts):
                drift[part] = drift_auc(*_texts(pairs, k)[:2], rows, self.seed).value
            self._measured.append(drift)
        self.flat = self.steps >= stop.min_steps and is_flat(self._measured, stop.patience, stop.delta)
        return {f"drift/{part}": value for part, value in drift.items()}

    def _probe(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """`shortcuts/…` of pairs: the discriminator and each probe on the same prompts; absent with too few of them."""
        metrics: dict[str, float] = {}
        swapped = [pair for pair in pairs if pair.swapped is not None]
        for k, part in enumerate(self.discriminator.parts):
            for probe in PROBES:
                used = swapped if probe == "image_swapped" else pairs
                if len({pair.prompt for pair in used}) < FEWEST_PROMPTS:
                    continue
                wins = _wins([pair.scores[k] for pair in used], [pair.prompt for pair in used])
                probe_wins = self._probe_wins(used, k, probe)
                own, others = mean_interval(wins), mean_interval(probe_wins)
                # As good as the discriminator: both can tell, and the discriminator is not clearly better.
                suffices = min(own.low, others.low) > 0.5 and paired_difference(probe_wins, wins).low <= 0
                metrics.setdefault(f"shortcuts/discriminator/{part}", own.value)
                metrics[f"shortcuts/{probe}/{part}"] = others.value
                metrics[f"shortcuts/{probe}_suffices/{part}"] = float(suffices)
        return metrics

    def _probe_wins(self, pairs: Sequence[Pair], k: int, probe: str) -> list[list[float]]:
        """Per prompt, whether a probe prefers the teacher in each pair; see `Scored.wins`."""
        teacher, policy, prompts = _texts(pairs, k)
        if probe == "length":
            return either_way(Scored(list(map(len, teacher)), list(map(len, policy)), prompts).wins())
        if probe == "format":
            scores = separate(list(map(skeleton, teacher)), list(map(skeleton, policy)), prompts, self.seed)
            return Scored(scores.teacher.tolist(), scores.policy.tolist(), prompts).wins()
        return _wins([(pair.swapped or [])[k] for pair in pairs], prompts)


def _counts(batch: Comparisons) -> tuple[int, int, int]:
    """Prompts; rollouts that are compared, because they and their prompt's teacher answer are well-formed; rollouts."""
    paired = [parts and batch.teacher[p] for parts, p in zip(batch.rollouts, batch.prompt_of, strict=True)]
    return len(batch.prompts), sum(map(bool, paired)), len(paired)


def _wins(scores: Sequence[Sequence[float]], prompts: Sequence[int]) -> list[list[float]]:
    """Per prompt, whether the teacher is preferred in each pair, of (N, 2) scores of teacher and policy."""
    return Scored([teacher for teacher, _ in scores], [policy for _, policy in scores], prompts).wins()


def _scores(scored: BatchScores, n: int, p: int) -> list[list[float]] | None:
    """(K, 2) of teacher and rollout; None where one has no score."""
    pair = [scored.teacher[p].tolist(), scored.scores[n].tolist()]
    return None if any(map(math.isnan, (*pair[0], *pair[1]))) else [list(one) for one in zip(*pair, strict=True)]


def _texts(pairs: Sequence[Pair], k: int) -> tuple[list[str], list[str], list[Any]]:
    """Teacher's and policy's texts of one part, and the prompt of each."""
    return [pair.teacher[k] for pair in pairs], [pair.policy[k] for pair in pairs], [pair.prompt for pair in pairs]
