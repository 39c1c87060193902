"""Published benchmarks, run by lmms-eval."""

from typing import Annotated

from pydantic import Field, PositiveInt

from prism_cli.recipes.section import Section, UserPath
from prism_cli.recipes.teachers import EndpointSection

PAPER = ("mathvista", "mathverse", "mathvision", "wemath", "mmmu", "mmmu_pro", "hallusionbench")


class BenchmarksSection(Section):
    """Benchmarks of lmms-eval; each run's model is evaluated in a separate process."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = PAPER
    """Names: mathvista, mathverse, mathvision, wemath, mmmu, mmmu_pro, hallusionbench, or any other task of
    lmms-eval."""
    include: UserPath | None = None
    """Folder with your own tasks, in lmms-eval's format."""
    limit: PositiveInt | None = None
    """Maximum questions per task; null for all."""
    llm_judge: EndpointSection | None = None
    """LLM that grades answers where a task asks for one; null uses the tasks' rules instead."""
    max_response_tokens: PositiveInt = 8192
    """Maximum tokens of a response."""
    batch_size: PositiveInt = 1
    """Questions answered at once."""
