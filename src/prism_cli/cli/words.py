"""Words after a command, sorted into recipe, overrides and run folders."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prism_cli.errors import RecipeError


class Words(NamedTuple):
    """Sorted words.

    Attributes:
        recipe: File, folder or shipped name; None when none was given.
        overrides: `key.path=value`.
        runs: Run folders.
    """

    recipe: str | None
    overrides: list[str]
    runs: list[str]


def sort_words(words: Sequence[str] | None, with_runs: bool = False) -> Words:
    """Sorts a command's words: an existing file is the recipe, whatever its name; the others are `key=value`.

    Args:
        words: As given.
        with_runs: Whether run folders (or RUN@…) may be among them.

    Raises:
        RecipeError: two recipes.
    """
    recipes, overrides, runs = [], [], []
    for word in words or ():
        if with_runs and _is_run(word):
            runs.append(word)
        elif re.match(r"[\w.-]*=", word) and not Path(word).exists():
            overrides.append(word)
        else:
            recipes.append(word)
    if len(recipes) > 1:
        what = "each is neither a run folder nor key=value" if with_runs else "a command takes one recipe"
        raise RecipeError(f"{' and '.join(map(repr, recipes))}: {what}", "set a value with key.path=value")
    return Words(recipes[0] if recipes else None, overrides, runs)


def _is_run(word: str) -> bool:
    folder = Path(word.partition("@")[0])
    return (folder / "run.json").is_file()
