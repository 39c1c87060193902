"""Synthetic picture worlds whose truth is known: data, teacher and verdicts in one."""

from prism_cli.errors import DataError
from prism_cli.worlds.shapes import Example, Probe, Shapes

__all__ = ["Example", "Probe", "Shapes", "world"]

_WORLDS = {Shapes.name: Shapes}


def world(name: str) -> Shapes:
    """The world of this name.

    Raises:
        DataError: there is none.
    """
    if name not in _WORLDS:
        raise DataError(f"no world {name!r}", hint=f"known worlds: {', '.join(_WORLDS)}")
    return _WORLDS[name]()


WORLD_BLOCKS = {"caption", "think", "answer"}
