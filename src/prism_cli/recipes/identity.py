"""Identity of a run: its resolved recipe as plain values and YAML, and the differences that make another run."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from prism_cli.recipes.section import Section

_ENDPOINT_KEYS = (
    *("endpoint", "api_key_env", "concurrency", "timeout", "attempts"),
    *("max_calls", "max_usd", "price", "store"),
)
# Keys, with all below them, that may change between two starts of a run: its folder, logging, budgets, addresses.
FREE_KEYS = (
    *("output", "log_every", "checkpoint.keep", "rollouts_every", "trainer.report_to", "trainer.run_name"),
    *(f"{section}.{key}" for section in ("teacher", "rewards.llm_judge", "llm_judge") for key in _ENDPOINT_KEYS),
    *("teacher.check", "teacher.max_failed", "rewards.max_wrong", "processes", "batch", "launch"),
    *("generation.memory", "generation.sleep", "generation.tensor_parallel", "generation.server"),
    # Added to a finished evaluation, whose samples stay.
    *("attribution", "benchmarks"),
    # Selects among the answers or prompts that were sampled.
    *("keep", "band"),
)
ABSENT = object()


def run_folder(stage: str, recipe: Any) -> Path:
    """The run folder of a recipe: its `output`, else runs/<stage>, for a pipeline or study runs/<name>."""
    return Path(recipe.output or f"runs/{recipe.name if stage in ('run', 'compare') else stage}")


def to_dict(recipe: Section) -> dict[str, Any]:
    """The full recipe, defaults included, as JSON-able values by the keys of recipes."""
    return recipe.model_dump(mode="json", by_alias=True)


def to_yaml(recipe: Section) -> str:
    """The full recipe as YAML, which loads back to the same recipe."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.width = 120
    yaml.dump(to_dict(recipe), stream)
    return stream.getvalue()


def differences(old: dict[str, Any], new: dict[str, Any], growing: Sequence[str] = ()) -> list[str]:
    """The differences that make `new` another run than `old`, one line for each key: `seed: 0 there, 1 now`.

    Not counted: FREE_KEYS, a larger `max_steps`, and a pipeline step's `set`, because the step's own run compares it.

    Args:
        old: The recipe of the run there, from `to_dict`.
        new: The recipe now.
        growing: Keys that may have a larger number, or a list with more in it.
    """
    grown = {key for key in growing if _grown(old.get(key), new.get(key))}
    old, new = ({key: value for key, value in one.items() if key not in grown} for one in (old, new))
    return [f"{key}: {_show(a)} there, {_show(b)} now" for key, a, b in _changed("", old, new) if not _free(key, a, b)]


def _grown(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return all(one in new for one in old)
    return isinstance(old, int) and isinstance(new, int) and new >= old


def _changed(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _changed(f"{key}.{name}" if key else name, old.get(name, ABSENT), new.get(name, ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _changed(f"{key}.{index}", *pair)
    elif old != new:
        yield key, old, new


def _free(key: str, old: Any, new: Any) -> bool:
    if re.match(r"steps\.\d+\.set(\.|$)", key):
        return True  # a step's own run folder compares what is set in it
    if key == "max_steps" and isinstance(old, int) and isinstance(new, int):
        return new > old
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def _show(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return str(value.get("type", "a section"))
    return repr(value) if isinstance(value, str) else str(value)
