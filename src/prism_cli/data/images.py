"""Pictures that rows name: bytes, files inside the data's own folder, or URLs of hosts the user allowed.

What is read is sent to the teacher, so a row may not name any other file of this machine, nor what only this machine
can reach.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prism_cli.data.download import fetch
from prism_cli.errors import DataError

OUTSIDE_CURE = "give bytes or a path inside the data's folder"


class ImageReader:
    """Finds the pictures of one source's rows.

    Args:
        folder: Local pictures must lie inside it; None when rows can't name any (hub).
        allow_urls: Hosts from which pictures may be fetched.
    """

    def __init__(self, folder: Path | None, allow_urls: Sequence[str] = ()):
        self.folder = folder.resolve() if folder else None
        self.allow_urls = allow_urls

    def read(self, reference: Any) -> dict[str, Any]:
        """A picture as `{"bytes", "path"}`: its bytes, or the absolute path of a local file.

        Args:
            reference: Bytes, `{"bytes", "path"}`, a data URL, a URL, or a path inside the folder.

        Raises:
            DataError: it may not be read, or is not there.
        """
        reference = _given(reference)
        if isinstance(reference, bytes):
            return {"bytes": reference, "path": None}
        if not isinstance(reference, str) or not reference:
            raise DataError(f"it is {json.dumps(reference, default=str)[:60]}", OUTSIDE_CURE)
        if reference.startswith("data:"):
            return {"bytes": _data_url(reference), "path": None}
        if is_url(reference):
            return {"bytes": fetch(reference, self.allow_urls), "path": None}
        file = self.local_file(reference)
        try:
            there = file.is_file()
        except OSError:  # its name is too long
            there = False
        if not there:
            raise DataError(f"{reference[:80]!r} does not exist", "paths begin at the data file's folder")
        return {"bytes": None, "path": str(file)}

    def local_name(self, reference: Any) -> str | None:
        """The path inside the folder that a reference, as `read` takes it, gives; None when it gives none."""
        name = _given(reference)
        if self.folder is None or not isinstance(name, str) or not name or name.startswith("data:") or is_url(name):
            return None
        return name

    def local_file(self, name: str) -> Path:
        """File that a path in a row leads to; it need not exist.

        Raises:
            DataError: out of the folder.
        """
        if self.folder is None:
            raise DataError(
                f"{name[:60]!r} is no picture but a name",
                "download the set (`hf download NAME --repo-type dataset --local-dir DIR`) and name the folder",
            )
        try:
            file = (self.folder / name).resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL in it, links in a circle
            raise DataError(f"{name[:60]!r} is no path", OUTSIDE_CURE) from None
        if not file.is_relative_to(self.folder):
            raise DataError(f"{name!r} leaves the data's folder", OUTSIDE_CURE)
        return file


def is_url(reference: Any) -> bool:
    """Whether a reference is asked of a host."""
    name = _given(reference)
    return isinstance(name, str) and not name.startswith("data:") and "://" in name


def _given(reference: Any) -> Any:
    """The content of a reference: bytes, a name, a URL."""
    if isinstance(reference, Mapping):
        return reference.get("bytes") or reference.get("path") or reference.get("url")
    return reference


def _data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError("a data: URL that is not base64", "write data:image/png;base64,…")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        raise DataError("a data: URL whose base64 is broken", "write data:image/png;base64,…") from None
