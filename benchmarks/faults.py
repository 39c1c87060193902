"""What becomes of a teacher's endpoint's faults: outcome, requests sent and seconds, fault by fault and all at once.

Run: .venv/bin/python benchmarks/faults.py
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.faulty_endpoint import (
    PASSING,
    UNUSABLE,
    Fault,
    FaultyEndpoint,
    answer,
    ask,
    connecting,
    outcomes,
    sow,
    status,
)

from prism_cli.endpoint import pace
from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.endpoint.requests import EndpointAnswer
from prism_cli.endpoint.store import AnswerStore

QUESTIONS, STRUCK = 40, 8
TIMEOUT = 2.0
STAYING: dict[str, Fault] = {
    "wrong model (404)": status(404),
    "refused key (401)": status(401),
    "no quota left (429, insufficient_quota)": status(429, "no quota", "insufficient_quota"),
    "rejected (400)": status(400, "too long"),
    "another grammar": answer("no tags at all"),
    "10 MB answer": answer("x" * 10_000_000),
    "server down for good (500)": status(500),
}


def told(outcome: EndpointAnswer | Exception) -> str:
    """An outcome in a few words."""
    if isinstance(outcome, EndpointAnswer):
        return "answered"
    return f"row fails: {outcome.reason}" if isinstance(outcome, NoAnswerError) else "client ends"


def measured(name: str, plan: dict[str, list[Fault]], questions: list[str], **settings: Any) -> str:
    """One row of the table."""
    with FaultyEndpoint() as endpoint, tempfile.TemporaryDirectory() as folder:
        endpoint.plan.update(plan)
        store = AnswerStore(Path(folder) / "answers.sqlite")
        with connecting(endpoint.url, store) as connect:
            client = connect(timeout=TIMEOUT, **settings)
            start = time.monotonic()
            ended = Counter(map(told, outcomes(client, list(map(ask, questions)), timeout=300)))
            seconds = time.monotonic() - start
            usable = len({kept.key for kept in store if client.problem(kept) is None})
        words = ", ".join(f"{count} {outcome}" for outcome, count in ended.items())
        again = max(endpoint.completed.values(), default=0)
        row = [name, words, endpoint.asked.total(), store.count(), usable, again, f"{seconds:.1f}"]
        store.close()
    return f"| {' | '.join(map(str, row))} |"


def main() -> None:
    """Prints the table."""
    pace.PATIENCE = 5.0  # half a minute by default, for servers that restart
    few, struck = [f"q{i}" for i in range(QUESTIONS)], [f"q{i}" for i in range(STRUCK)]
    print(f"{QUESTIONS} questions, {STRUCK} of them struck; timeout {TIMEOUT:g} s, patience {pace.PATIENCE:g} s\n")
    print("| fault | outcome | requests sent | answers paid and kept | usable | most answers to one | s |")
    print("|---|---|---|---|---|---|---|")
    print(measured("none", {}, few))
    for name, fault in {**PASSING, **UNUSABLE}.items():
        print(measured(f"{name}, once each", {question: [fault] for question in struck}, few), flush=True)
    check = {"check": lambda text: "no tags" if "no tags" in text else None}
    for name, fault in STAYING.items():
        hit = few if "down" in name else struck
        print(measured(name, {question: [fault] * 99 for question in hit}, few, **check), flush=True)
    many = [f"q{i}" for i in range(2000)]
    endpoint = FaultyEndpoint()
    sown = sow(endpoint, many, share=0.05, seed=7)
    print(measured(f"2,000 questions, {sown.total()} faults of {len(sown)} kinds", endpoint.plan, many))


if __name__ == "__main__":
    main()
