"""The order for the process in which lmms-eval runs, as JSON on its stdin."""

from typing import Any, NamedTuple


class Order(NamedTuple):
    """Benchmarks to be measured on one model.

    Attributes:
        model: Its folder.
        folder: Where results and responses go.
        tasks: Names that lmms-eval knows.
        include: Folder with tasks of the user's own, or None.
        limit: Questions a task at most; None for all.
        max_response_tokens: Longest response.
        batch_size: Questions answered at once, by transformers.
        seed: Of the generation.
        has_llm_judge: A model reads answers where a task wants one.
        backend: `Backend.to_json`; None where the recipe leaves it open.
        settings: What a result depends on beside the model; written beside the scores.
    """

    model: str
    folder: str
    tasks: list[str]
    include: str | None
    limit: int | None
    max_response_tokens: int
    batch_size: int
    seed: int
    has_llm_judge: bool
    backend: dict[str, Any] | None
    settings: dict[str, Any]
