"""`tests.distributed.worker` with rollouts that are generated, not replayed."""

import json
import sys
from pathlib import Path

from tests.distributed import worker

if __name__ == "__main__":
    worker.replay = lambda: None
    worker.main(Path(sys.argv[1]), [json.loads(Path(path).read_text()) for path in sys.argv[2:]])
