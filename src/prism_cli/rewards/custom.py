"""Rewards of the user's own: found by their dotted path, watched while they run."""

import inspect
import math
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

from prism_cli.errors import RecipeError, RewardError
from prism_cli.responses import Response

_CALLED = "(response, row, length)"


def find_function(path: str, key: str) -> Callable[..., Any]:
    """The function at a dotted path; modules of the current folder are found too.

    Args:
        path: Such as `my_rewards.short`.
        key: The recipe's key, for messages.

    Raises:
        RecipeError: no such module or function, it can't be called with three arguments, or its module fails.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise RecipeError(f"{key}: {path!r} names no module", "write module.function, such as my_rewards.short")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # at the end: no file here takes the place of an installed package
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise RecipeError(f"{key}: {module} needs {error.name}, which is not installed", "install it") from None
        raise RecipeError(
            f"{key}: no module {error.name}, neither installed nor in {here}",
            f"put {module.replace('.', '/')}.py there, or run prism from its folder",
        ) from None
    except Exception as error:  # a user's module may fail in any way
        raise RecipeError(f"{key}: importing {module} failed: {_told(error)}", _mend(error)) from error
    if found is None:
        raise RecipeError(f"{key}: no function {name} in {module}", _where(sys.modules[module]))
    if not callable(found):
        raise RecipeError(f"{key}: {path} is {type(found).__name__}, no function", f"name one called with {_CALLED}")
    try:
        inspect.signature(found).bind(None, None, None)
    except TypeError:
        wanted = f"{name}{inspect.signature(found)}"
        raise RecipeError(f"{key}: {wanted} can't be called with {_CALLED}", "give it these three") from None
    except ValueError:
        pass  # a function written in C may not tell
    return found


def custom_rule(
    path: str, function: Callable[..., Any], key: str
) -> Callable[[Response, dict[str, Any], int], float | None]:
    """A user's function as a rule.

    Args:
        path: Its dotted path, for messages.
        function: Called with (response, row, length).
        key: The recipe's key, for messages.

    Returns:
        The rule; it raises RewardError where the function fails or gives neither a finite number nor None.
    """

    def rule(response: Response, row: dict[str, Any], length: int) -> float | None:
        place = f"{key}: {path} on row {row['id']}"
        try:
            value = function(response, row, length)
        except Exception as error:  # a user's function may fail in any way
            raise RewardError(f"{place}: {_told(error)}", _mend(error)) from error
        if value is None:
            return None
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(
                f"{place} gave {_short(repr(value))}, not a finite number",
                "return a number, or None where it can't tell",
            )
        return float(value)

    return rule


def _told(error: Exception) -> str:
    return _short(f"{type(error).__name__}: {error}")


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _mend(error: Exception) -> str:
    """Hint with the line of the user's code that failed."""
    if isinstance(error, SyntaxError):
        return f"mend {error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((one for one in reversed(frames) if one.filename.startswith(str(Path.cwd()))), frames[-1])
    return f"mend {frame.filename}, line {frame.lineno}; a response may be malformed, and then has no answer"


def _where(module: Any) -> str:
    names = [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    return f"it has {', '.join(names)}" if names else f"{getattr(module, '__file__', module)} has no functions"
