"""The process in which lmms-eval runs: `python -m prism_cli.stages.eval_benchmark_worker`, an order on stdin.

On stdout it tells how far it is, a JSON object a line; all that lmms-eval prints goes to stderr.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prism_cli.evaluation.benchmark_order import Order
from prism_cli.evaluation.lmms import Messages, known_tasks, run_task
from prism_cli.runs.files import read_lines, write_atomically, write_lines

if TYPE_CHECKING:
    from prism_cli.evaluation.backend import Sample
    from prism_cli.models import Policy

Report = Callable[[str, int, int], None]


def main() -> None:
    """Works an order off: a result a task, written when the task is done."""
    order, report = Order(**json.load(sys.stdin)), _own_stdout()
    from prism_cli.assembly.generation import available_backend, sampler
    from prism_cli.evaluation.backend import Backend
    from prism_cli.models import load_policy
    from prism_cli.rewards.accuracy import is_correct

    manager = known_tasks(order.tasks, order.include)  # before hours of another task
    policy, folder = load_policy(Path(order.model)), Path(order.folder)
    named = None if order.backend is None else Backend.from_json(order.backend)
    backend = available_backend(named, policy)
    sizes = {"max_tokens": order.max_response_tokens, "batch_size": order.batch_size}
    with sampler(backend, policy, order.model, **sizes) as sample:
        answers = _Answers(order, policy, sample, backend.chunk(order.batch_size), report)
        for task in order.tasks:
            scores, lines = run_task(
                task,
                answers,
                manager=manager,
                limit=order.limit,
                output=str(folder / "files" / task),
                judged=order.has_llm_judge,
                verify=is_correct,
            )
            write_lines(folder / f"{task}.jsonl", lines)
            result = {"settings": order.settings, "scores": [score._asdict() for score in scores]}
            write_atomically(folder / f"{task}.json", json.dumps(result, indent=2))


def _own_stdout() -> Report:
    """Keeps stdout to this process's own words, whatever a library prints."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(task: str, done: int, total: int) -> None:
        out.write(json.dumps({"task": task, "done": done, "total": total}) + "\n")
        out.flush()

    return report


class _Answers:
    """Greedy answers of a policy, kept on disk as they come: responses-<task>.jsonl, a line a question."""

    def __init__(self, order: Order, policy: "Policy", sample: "Sample", chunk: int, report: Report):
        self._order, self._policy, self._sample, self._chunk, self._report = order, policy, sample, chunk, report

    def __call__(self, task: str, asked: Sequence[tuple[int, Messages]]) -> list[str | None]:
        path = Path(self._order.folder) / f"responses-{task}.jsonl"
        limit = self._order.max_response_tokens
        done = {line["doc"]: line for line in read_lines(path) if line["limit"] == limit}
        write_lines(path, done.values())
        missing = [(doc, messages) for doc, messages in asked if doc not in done]
        with open(path, "a", encoding="utf-8") as file:
            for start in range(0, len(missing), self._chunk):
                self._report(task, len(done), len(asked))
                chunk = missing[start : start + self._chunk]
                chats = [self._chat(messages) for _, messages in chunk]
                responses = self._sample(chats, temperature=0.0, seed=self._order.seed)
                for (doc, _), response in zip(chunk, responses, strict=True):
                    facts = {"text": response.text, "length": len(response.token_ids), "failed": response.failed}
                    done[doc] = {"doc": doc, "limit": limit, **facts}
                    file.write(f"{json.dumps(done[doc])}\n")
                file.flush()
        self._report(task, len(asked), len(asked))
        return [self._final(done[doc]) for doc, _ in asked]

    def _final(self, line: dict[str, Any]) -> str | None:
        """The answer block of a response: "" where it is malformed."""
        return None if line["failed"] else self._policy.grammar.parse(line["text"]).answer or ""

    def _chat(self, messages: Messages) -> list[dict[str, Any]]:
        """A task's chat with the run's instruction for its system message."""
        turns = [message for message in messages() if message["role"] != "system"]
        instruction = self._policy.instruction
        if instruction is None:
            return turns
        return [{"role": "system", "content": [{"type": "text", "text": instruction}]}, *turns]


if __name__ == "__main__":
    main()
