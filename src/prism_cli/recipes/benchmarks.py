"""Published benchmarks, run by lmms-eval."""

from typing import Annotated

from pydantic import Field, PositiveInt

from prism_cli.recipes.section import Section, UserPath
from prism_cli.recipes.teachers import EndpointSection

PAPER = ("mathvista", "mathverse", "mathvision", "wemath", "mmmu", "mmmu_pro", "hallusionbench")


class BenchmarksSection(Section):
    """Benchmarks that lmms-eval knows, each run's model put to them in a process of its own."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = PAPER
    """Names: mathvista, mathverse, mathvision, wemath, mmmu, mmmu_pro, hallusionbench, or any task lmms-eval knows."""
    include: UserPath | None = None
    """Folder with tasks of your own, in lmms-eval's form."""
    limit: PositiveInt | None = None
    """Questions a task at most; null for all."""
    llm_judge: EndpointSection | None = None
    """The model that reads answers where a task wants one; null leaves such tasks to their rules."""
    max_response_tokens: PositiveInt = 8192
    """Longest response."""
    batch_size: PositiveInt = 1
    """Questions answered at once."""
