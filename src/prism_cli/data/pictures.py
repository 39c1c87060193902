"""Pictures: size, whether it decodes to the end, and what tells it from another."""

import base64
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image as PILImage

from prism_cli.endpoint.pictures import image_bytes
from prism_cli.errors import DataError

# Only formats that decode in this process: PIL would hand an EPS file to Ghostscript, which runs programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MIN_SIDE = 10
MAX_ASPECT = 200
MAX_PIXELS = 89_478_485  # where PIL begins to warn of decompression bombs: a quarter of a gigabyte in RGB

_MARGIN = 3  # levels of grey; below it two neighbours count as equal, so that compression noise flips no bit
_ACROSS, _DOWN = 16, 16
SHAPE_BITS = _ACROSS * _DOWN
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


class Fault(NamedTuple):
    """The fault of a picture that can't be used.

    Attributes:
        kind: Short name to count by.
        what: What was found.
        cure: What to do.
    """

    kind: str
    what: str
    cure: str


class Picture(NamedTuple):
    """One picture, looked at.

    Attributes:
        width, height: Pixels, from its header; 0 when that can't be read.
        format: PIL's name, e.g. "JPEG"; "" when that can't be read.
        fault: Why it can't be used, or None.
        pixels: Digest of its RGB pixels: equal for any lossless copy. Empty unless asked for.
        shape: 256-bit difference hash: a lossy copy differs in a few bits. 0 unless asked for.
    """

    width: int
    height: int
    format: str
    fault: Fault | None
    pixels: bytes = b""
    shape: int = 0


def look(image: Mapping[str, Any], identify: bool = False) -> Picture:
    """Decodes a picture to its end, once; a giant one is never decoded.

    Args:
        image: An image of a row: `bytes`, or the `path` of a local file.
        identify: Also hash it.
    """
    try:
        data = image_bytes(image)
    except DataError as error:
        return Picture(0, 0, "", Fault("missing picture", str(error), error.hint or "drop the row"))
    try:
        with warnings.catch_warnings(action="ignore", category=PILImage.DecompressionBombWarning):
            opened = PILImage.open(io.BytesIO(data), formats=FORMATS)
    except PILImage.DecompressionBombError:
        return Picture(0, 0, "", _giant(f"over {2 * MAX_PIXELS // 10**6} million pixels"))
    except _BROKEN:
        fault = Fault("broken picture", "is no picture", f"give one of {', '.join(FORMATS)}, or drop the row")
        return Picture(0, 0, "", fault)
    width, height = opened.size
    header = Picture(width, height, opened.format or "", _size_fault(width, height))
    if width * height > MAX_PIXELS:
        return header
    try:
        opened.load()
        pixels = opened.convert("RGB") if identify and opened.mode != "RGB" else opened
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return header._replace(
            fault=Fault("broken picture", f"does not decode to its end ({reason})", "fetch it again, or drop the row")
        )
    return header._replace(pixels=_digest(pixels), shape=_difference_hash(pixels)) if identify else header


def inline(image: Mapping[str, Any], side: int = 640) -> str:
    """A sound picture as a data URL for a page, encoded anew and scaled down to `side` pixels."""
    picture = PILImage.open(io.BytesIO(image_bytes(image)), formats=FORMATS).convert("RGB")
    picture.thumbnail((side, side))
    # Small ones are drawings as a rule, which JPEG would blur.
    kind = "PNG" if max(picture.size) <= 256 else "JPEG"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _size_fault(width: int, height: int) -> Fault | None:
    if width * height > MAX_PIXELS:
        return _giant(f"{width} × {height} pixels")
    if min(width, height) < MIN_SIDE:
        return Fault(
            "tiny picture",
            f"{width} × {height} pixels",
            f"give one of at least {MIN_SIDE} pixels a side, or drop the row",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Fault(
            "narrow picture",
            f"{width} × {height} pixels: one side is over {MAX_ASPECT} times the other",
            "crop it, or drop the row: the processor refuses it",
        )
    return None


def _giant(size: str) -> Fault:
    most = MAX_PIXELS // 10**6
    return Fault(
        "giant picture", f"its header says {size}, {most} million are the most", "scale it down, or drop the row"
    )


def _digest(picture: PILImage.Image) -> bytes:
    size = struct.pack(">II", *picture.size)
    return hashlib.sha256(size + picture.tobytes()).digest()[:16]


def _difference_hash(picture: PILImage.Image) -> int:
    """A bit for each pair of neighbours in a 17 × 16 grey thumbnail: whether the right one is clearly brighter."""
    grey = picture.convert("L").resize((_ACROSS + 1, _DOWN), PILImage.Resampling.BILINEAR, reducing_gap=3.0).tobytes()
    bits = 0
    for line in range(_DOWN):
        start = line * (_ACROSS + 1)
        for left, right in zip(grey[start : start + _ACROSS], grey[start + 1 : start + 1 + _ACROSS], strict=True):
            bits = bits << 1 | (right - left >= _MARGIN)
    return bits
