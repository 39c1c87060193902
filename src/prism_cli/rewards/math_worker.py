"""The process that compares mathematics: reads lines `[answer, reference]`, writes `true` or `false` for each.

Run as a file by `mathematics.py`, so it imports nothing of this package. Its own timers end it, by the kernel: a
signal's default action needs no Python, so it comes even in the middle of one huge multiplication.
"""

import contextlib
import json
import logging
import resource
import signal
import sys

# Processor time decides, so that a busy machine doesn't change a verdict; the wall clock is the backstop.
WALL_FACTOR = 3
MAX_BYTES = 8 << 30


def main() -> None:
    """Serves until its standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted run still ends in order
    timers = {signal.SIGPROF, signal.SIGALRM}
    for timer in timers:
        signal.signal(timer, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, timers)
    logging.disable()
    from math_verify import LatexExtractionConfig, parse, verify

    def compare(answer: str, reference: str) -> bool:
        parsed = [
            parse(f"${side}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0)
            for side in (reference, answer)
        ]
        return all(parsed) and verify(parsed[0], parsed[1], timeout_seconds=0)

    compare("x+1", r"\frac{1}{2}")  # the parser builds its tables at its first use
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    limit = float(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * limit)
        verdict = compare(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(bool(verdict)), flush=True)


if __name__ == "__main__":
    main()
