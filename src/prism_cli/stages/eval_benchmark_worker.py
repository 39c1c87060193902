"""The process in which lmms-eval runs: `python -m prism_cli.stages.eval_benchmark_worker`, an order on stdin.

On stdout it tells how far it is, a JSON object a line; all that lmms-eval prints goes to stderr.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from prism_cli.evaluation.lmms import Messages, known_tasks, run_task
from prism_cli.recipes.benchmarks import BenchmarksSection
from prism_cli.recipes.generation import Generation
from prism_cli.runs.files import write_atomically
from prism_cli.stages.eval_benchmarks import settings
from prism_cli.stages.eval_samples import VLLM_LOT, read_lines

if TYPE_CHECKING:
    from prism_cli.evaluation.sampling import Sample
    from prism_cli.models import Policy

Tell = Callable[[str, int, int], None]


class Order:
    """What is to be done; `generation` as a recipe has it."""

    def __init__(self, order: dict[str, Any]):
        self.model, self.folder = Path(order["model"]), Path(order["folder"])
        self.tasks: list[str] = order["tasks"]
        self.section = BenchmarksSection.model_validate(order["section"])
        self.generation = TypeAdapter(Generation | None).validate_python(order["generation"])
        self.seed: int = order["seed"]


def main() -> None:
    """Works an order off: a result a task, written when it is whole."""
    order, tell = Order(json.load(sys.stdin)), _own_stdout()
    from prism_cli.assembly.generation import chosen_engine, sampler
    from prism_cli.models import load_policy
    from prism_cli.rewards.accuracy import is_correct

    section = order.section
    manager = known_tasks(order.tasks, section.include)  # before hours of another task
    policy = load_policy(order.model)
    engine = chosen_engine(order, policy)
    limits = {"max_tokens": section.max_response_tokens, "batch_size": section.batch_size}
    with sampler(engine, policy, order.model, **limits) as sample:
        size = VLLM_LOT if engine.engine == "vllm" else section.batch_size
        answers = _Answers(order, policy, sample, size, tell)
        for task in order.tasks:
            scores, lines = run_task(
                task,
                answers,
                manager=manager,
                limit=section.limit,
                output=str(order.folder / "files" / task),
                judged=section.llm_judge is not None,
                verify=is_correct,
            )
            write_atomically(order.folder / f"{task}.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
            result = {"settings": settings(section), "scores": [score._asdict() for score in scores]}
            write_atomically(order.folder / f"{task}.json", json.dumps(result, indent=2))


def _own_stdout() -> Tell:
    """Keeps stdout to this process's own words, whatever a library prints."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(task: str, done: int, total: int) -> None:
        out.write(json.dumps({"task": task, "done": done, "total": total}) + "\n")
        out.flush()

    return tell


class _Answers:
    """Greedy answers of a policy, kept on disk as they come: responses-<task>.jsonl, a line a question."""

    def __init__(self, order: Order, policy: "Policy", sample: "Sample", size: int, tell: Tell):
        self._order, self._policy, self._sample, self._size, self._tell = order, policy, sample, size, tell

    def __call__(self, task: str, asked: Sequence[tuple[int, Messages]]) -> list[str | None]:
        path = self._order.folder / f"responses-{task}.jsonl"
        limit = self._order.section.max_response_tokens
        done = {line["doc"]: line for line in (read_lines(path) if path.exists() else []) if line["limit"] == limit}
        write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in done.values()))
        open_ = [(doc, messages) for doc, messages in asked if doc not in done]
        with open(path, "a", encoding="utf-8") as file:
            for start in range(0, len(open_), self._size):
                self._tell(task, len(done), len(asked))
                lot = open_[start : start + self._size]
                said = self._sample(
                    [self._chat(messages) for _, messages in lot], temperature=0.0, seed=self._order.seed
                )
                for (doc, _), one in zip(lot, said, strict=True):
                    line = {
                        "doc": doc,
                        "limit": limit,
                        "text": one.text,
                        "length": len(one.token_ids),
                        "failed": one.failed,
                    }
                    done[doc] = line
                    file.write(f"{json.dumps(line)}\n")
                file.flush()
        self._tell(task, len(asked), len(asked))
        return [self._final(done[doc]) for doc, _ in asked]

    def _final(self, line: dict[str, Any]) -> str | None:
        """The answer block of a response: "" where it is malformed."""
        return None if line["failed"] else self._policy.grammar.parse(line["text"]).answer or ""

    def _chat(self, messages: Messages) -> list[dict[str, Any]]:
        """A task's chat with the run's instruction for its system message."""
        said = [message for message in messages() if message["role"] != "system"]
        instruction = self._policy.instruction
        if instruction is None:
            return said
        return [{"role": "system", "content": [{"type": "text", "text": instruction}]}, *said]


if __name__ == "__main__":
    main()
