"""`tests.distributed.worker` where a collective waits for LIMIT seconds, and single processes are later than that:
one generates long, another scores long, and the main one writes weights for long."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from prism_cli import processes
from tests.distributed import worker

LIMIT = 10
LATE = 2 * LIMIT


def late(kind: type, name: str, rank: int) -> None:
    """Has a method take `LATE` seconds more on one process."""
    method = getattr(kind, name)

    def slow(self, *args, **kwargs):
        if processes.rank() == rank:
            time.sleep(LATE)
        return method(self, *args, **kwargs)

    setattr(kind, name, slow)


if __name__ == "__main__":
    from transformers import Trainer
    from trl import GRPOTrainer

    from prism_cli.trainers.verified_reward import VerifiedReward

    processes.COLLECTIVE = timedelta(seconds=LIMIT)
    worker.replay()
    late(GRPOTrainer, "_generate_single_turn", 1)
    late(VerifiedReward, "score", 0)
    late(Trainer, "_save", 0)
    worker.replay = lambda: None
    worker.main(Path(sys.argv[1]), [json.loads(Path(path).read_text()) for path in sys.argv[2:]])
