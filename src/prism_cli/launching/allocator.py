"""CUDA's allocator: settings that stand in the environment before torch is loaded, here and in started processes."""

import os
from collections.abc import MutableMapping

# The first is torch's name, the second its older one, which vLLM reads: it switches them off where its sleep can't
# have them.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"


def expand_segments(environment: MutableMapping[str, str] | None = None) -> None:
    """Has CUDA's allocator grow what it holds instead of adding pieces, unless the user has set the allocator.

    Nearly every batch has another length; pieces of earlier sizes fit none of them and make holes of 10 to 20 %.

    Args:
        environment: Of this process, where it is left out.
    """
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in VARIABLES):
        environment.update(dict.fromkeys(VARIABLES, EXPANDABLE))
