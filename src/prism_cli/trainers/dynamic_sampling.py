"""Dynamic sampling of DAPO: prompts are rolled out in rounds until the batch is full of groups that teach something.

A group whose rollouts are all right or all wrong has no advantage. Groups are chosen here, from
accuracies alone; the trainer rolls out. Letters: P processes, n prompts a round and process, G rollouts a prompt.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prism_cli.errors import RecipeError
from prism_cli.trainers.algorithms import Resampling
from prism_cli.trainers.columns import Columns, batch, columns
from prism_cli.trainers.prompts import PromptCursor


class Choice(NamedTuple):
    """The choice among a round's groups.

    Attributes:
        keep: (P, n) bool, trained on.
        solved: Groups dropped because all their rollouts are right.
        failed: Groups dropped because all are wrong, or equally right in part.
        unscored: Groups dropped because none of their rollouts has an accuracy.
    """

    keep: Tensor
    solved: int
    failed: int
    unscored: int


def choose(accuracy: Tensor, room: list[int]) -> Choice:
    """The groups of a round that are trained on: those whose accuracies differ, the first ones that have room.

    Args:
        accuracy: (P, n, G), NaN where a rollout is unscored, which says nothing about its group.
        room: (P,) groups that each process still has room for; it can train on its own rollouts only.
    """
    scored = ~accuracy.isnan()
    lowest = accuracy.masked_fill(~scored, torch.inf).amin(-1)
    highest = accuracy.masked_fill(~scored, -torch.inf).amax(-1)
    differs, known = lowest < highest, scored.any(-1)
    solved = known & ~differs & (lowest >= 1)
    keep = differs & (differs.cumsum(1) <= torch.tensor(room, device=differs.device).unsqueeze(1))
    failed = known & ~differs & ~solved
    return Choice(keep, int(solved.sum()), int(failed.sum()), int((~known).sum()))


class Tally(NamedTuple):
    """The account of a batch, over all processes.

    Attributes:
        rounds: How often prompts were rolled out.
        seen: Prompts rolled out.
        kept: Groups trained on.
        solved: Groups dropped, all right.
        failed: Groups dropped, all wrong.
        unscored: Groups dropped, without an accuracy.
    """

    rounds: int = 0
    seen: int = 0
    kept: int = 0
    solved: int = 0
    failed: int = 0
    unscored: int = 0

    def plus(self, choice: Choice) -> "Tally":
        """With one more round."""
        kept, groups = int(choice.keep.sum()), choice.keep.numel()
        more = (1, groups, kept, choice.solved, choice.failed, choice.unscored)
        return Tally(*(a + b for a, b in zip(self, more, strict=True)))

    def metrics(self) -> dict[str, float]:
        """Under the names they are logged by; groups that could teach but found no room are counted as unused."""
        unused = self.seen - self.kept - self.solved - self.failed - self.unscored
        return {
            "sampling/kept": self.kept,
            "sampling/dropped_solved": self.solved,
            "sampling/dropped_failed": self.failed,
            "sampling/dropped_unscored": self.unscored,
            "sampling/unused": unused,
            "sampling/rounds": self.rounds,
        }


class DynamicSampling:
    """Fills generation batches, round by round.

    A step looks at no more prompts than there are rows. None is rolled out twice in it, except where an epoch ends
    within it and the next one's order begins with a prompt it has looked at.

    Args:
        resampling: Prompts a round, and rounds at most.
        prompts: Prompts of a batch, over all processes.
        group: Rollouts a prompt.
        cursor: The prompts in their order.
        pad_id: The padding token.
        process: This process and how many there are.

    Raises:
        RecipeError: the processes can't have equal shares of a batch.
    """

    def __init__(
        self,
        resampling: Resampling,
        prompts: int,
        group: int,
        cursor: PromptCursor,
        pad_id: int,
        process: tuple[int, int],
    ):
        self.pad_id = pad_id
        self.process, self.processes = process
        if prompts % self.processes:
            raise RecipeError(
                f"dynamic sampling: prompts_per_step {prompts} can't be divided among {self.processes} processes",
                "choose a multiple of the number of processes, or switch it off with algorithm.max_rounds=0",
            )
        self.prompts, self.group, self.cursor = prompts, group, cursor
        self.a_round = prompts * max(1, min(resampling.oversample, cursor.count // prompts))
        self.max_rounds = max(1, min(resampling.max_rounds, cursor.count // self.a_round))
        self.tally = Tally()

    def fill(self, roll_out: Callable[[list[int]], tuple[Mapping[str, Any], Tensor]]) -> dict[str, Any]:
        """A batch of this process's kept rollouts, filled up with rollouts that carry no loss.

        The cursor moves only when the batch is complete: a round that fails leaves it where it was.

        Args:
            roll_out: This process's row indices of a round → TRL's output for their rollouts, and the accuracy of all
                processes' rollouts, in order.
        """
        cursor = PromptCursor(self.cursor.count, self.cursor.order, self.cursor.seen)
        room = [self.prompts // self.processes] * self.processes
        size = room[0] * self.group
        kept, spare, tally = {}, {}, Tally()
        while any(room) and tally.rounds < self.max_rounds:
            share = self.a_round // self.processes
            mine = cursor.take(self.a_round)[self.process * share : (self.process + 1) * share]
            output, accuracy = roll_out(mine)
            choice = choose(accuracy.view(self.processes, share, self.group), room)
            room = [left - taken for left, taken in zip(room, choice.keep.sum(1).tolist(), strict=True)]
            rows = choice.keep[self.process].repeat_interleave(self.group).nonzero().flatten().tolist()
            rollouts = columns(output)
            kept = {name: kept.get(name, []) + [_own(values[i]) for i in rows] for name, values in rollouts.items()}
            spare = {name: [_own(values[0])] for name, values in rollouts.items()}
            tally = tally.plus(choice)
        self.cursor.seen, self.tally = cursor.seen, tally
        return batch(filled_up(kept, spare, size), self.pad_id)


def filled_up(kept: Columns, spare: Columns, size: int) -> Columns:
    """Kept rollouts, and copies of them without a token that counts, up to a batch's size.

    Each prompt has about as many copies, so they share the pass of its rollouts, and lie evenly over micro-batches.

    Args:
        kept: Rollouts to train on.
        spare: A rollout to copy where none was kept.
        size: Rollouts of the batch.
    """
    have = len(kept["completion_mask"])
    source = kept if have else spare
    copies = [i % max(have, 1) for i in range(size - have)]
    filled = {name: kept[name] + [source[name][i] for i in copies] for name in kept}
    blank = [torch.zeros_like(mask) for mask in filled["completion_mask"][have:]]
    return filled | {"completion_mask": filled["completion_mask"][:have] + blank}


def _own(value: Any) -> Any:
    """A value that doesn't keep the full round's tensor in memory."""
    return value.clone() if isinstance(value, Tensor) else value


class NoUpdate(TrainerCallback):
    """Keeps the optimiser from moving weights (by momentum and decay) in a step whose batch holds no loss at all.

    Args:
        sampling: Its last batch is the step's.
    """

    def __init__(self, sampling: DynamicSampling):
        self.sampling = sampling

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Drops the gradients of such a step."""
        if model is not None and not self.sampling.tally.kept:
            for parameter in model.parameters():
                parameter.grad = None
