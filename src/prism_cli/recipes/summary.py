"""What `--shrink` changed of a recipe, in a line."""

from collections.abc import Iterator
from typing import Any

from prism_cli.recipes.identity import to_dict
from prism_cli.recipes.section import Section

STAND_INS = ("model", "from", "data", "eval_data", "teacher", "discriminator.base", "discriminator.path")
ABSENT = object()


def in_words(recipe: Section, changes: dict[str, Any]) -> str:
    """`small stand-ins for model, data; max_steps 500 → 2, …; one process in place of 8`.

    Args:
        recipe: As it was.
        changes: Dotted key → new value.
    """
    values = to_dict(recipe)
    parts = []
    if stand_ins := [key for key in STAND_INS if key in changes and changes[key] is not None]:
        parts.append(f"small stand-ins for {', '.join(stand_ins)}")
    if numbers := list(_numbers_in_words(values, changes)):
        parts.append(", ".join(numbers))
    if "launch" in changes:
        launch = values["launch"]
        zero = f" with ZeRO-{launch['zero']}" if launch["zero"] else ""
        parts.append(f"one process in place of {launch['processes'] * launch['nodes']}{zero}")
    if (values.get("generation") or {}).get("engine") == "vllm":
        parts.append("transformers in place of vLLM")
    shown = (*STAND_INS, "launch", "image", "from")
    dropped = [key for key, value in changes.items() if value in (None, False) and key not in shown]
    dropped += [key for key in ("discriminator.path",) if changes.get(key, ABSENT) is None]
    if dropped:
        parts.append(f"without {', '.join(dropped)}")
    return "; ".join(parts) or "nothing: it is small already"


def _numbers_in_words(values: dict[str, Any], changes: dict[str, Any]) -> Iterator[str]:
    for key, value in changes.items():
        if isinstance(value, int) and not isinstance(value, bool):
            before = at(values, key)
            yield f"{key} {'all' if before is None else before} → {value}"


def at(values: Any, key: str) -> Any:
    """A value by its dotted key, ABSENT where there is none."""
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return ABSENT
        values = values[name]
    return values
