"""Pictures as an endpoint takes them: of a known kind, and not larger than asked."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from prism_cli.errors import DataError

# What LANCZOS resamples and every kind of file here can hold; others (palettes, 16 bits) become RGB first.
_PLAIN_MODES = ("L", "RGB", "RGBA")
# What Pillow raises for a broken file, by its kind.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError)


def image_bytes(image: Mapping[str, Any]) -> bytes:
    """The bytes of a row's image, as they were read.

    Raises:
        DataError: its file is gone.
    """
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise DataError(
            f"picture {image['path']} can't be read: {error.strerror}", "it was there when the data were prepared"
        ) from None


def media_type(image: bytes, where: str = "") -> str:
    """The picture's media type, told from its first bytes.

    Raises:
        DataError: it is none of PNG, JPEG, WebP, GIF.
    """
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    start = image[:8].hex(" ") or "nothing"
    raise DataError(
        f"{where or 'a request'}: an image that no endpoint takes (its bytes start with {start})",
        hint="give PNG, JPEG, WebP or GIF",
    )


def data_url(image: bytes) -> str:
    """The picture as a data URL.

    Raises:
        DataError: its kind is not known.
    """
    return f"data:{media_type(image)};base64,{base64.b64encode(image).decode()}"


def pixels(image: bytes, where: str = "") -> int:
    """Pixels of a picture; only its header is read.

    Raises:
        DataError: it can't be opened, or is so large that decoding it could exhaust the memory.
    """
    try:
        with Image.open(io.BytesIO(image)) as picture:
            width, height = picture.size
    except _UNREADABLE as error:
        raise _broken(where, error) from error
    except Image.DecompressionBombError as error:
        raise _bomb(where, str(error)) from error
    if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        raise _bomb(where, f"{width}×{height}")
    return width * height


def is_larger(image: bytes, max_pixels: int, where: str = "") -> bool:
    """Whether a picture has more than `max_pixels` pixels; only its header is read.

    Raises:
        DataError: as `pixels`.
    """
    return pixels(image, where) > max_pixels


def shrunk(image: bytes, max_pixels: int, where: str = "") -> bytes:
    """The picture scaled down to at most `max_pixels` pixels, as the same kind of file, the right way up.

    A picture that is no larger comes back as it is, byte for byte. Of an animation the first frame is taken.

    Raises:
        DataError: as `is_larger`.
    """
    if not is_larger(image, max_pixels, where):
        return image
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return _encoded(_scaled(picture, max_pixels), picture.format, picture.info.get("icc_profile"))
    except _UNREADABLE as error:
        raise _broken(where, error) from error


def _scaled(picture: Image.Image, max_pixels: int) -> Image.Image:
    scale = (max_pixels / (picture.width * picture.height)) ** 0.5
    bounds = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    if picture.mode not in _PLAIN_MODES:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.thumbnail(bounds, Image.Resampling.LANCZOS)
    return ImageOps.exif_transpose(picture)


def _encoded(picture: Image.Image, kind: str | None, profile: bytes | None) -> bytes:
    written = io.BytesIO()
    picture.save(written, format=kind, quality=90, icc_profile=profile)
    return written.getvalue()


def _broken(where: str, error: Exception) -> DataError:
    return DataError(f"{where or 'a request'}: an image that can't be read ({error})", hint="is the file whole?")


def _bomb(where: str, size: str) -> DataError:
    return DataError(
        f"{where or 'a request'}: an image too large to decode ({size})", hint="scale it down, or drop the row"
    )
