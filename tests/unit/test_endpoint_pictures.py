import base64
import io
import struct
import zlib

import pytest
from PIL import Image
from tests.faulty_endpoint import FaultyEndpoint, ask, connecting, endpoint_at, outcomes, results

from prism_cli.endpoint.failures import NoAnswerError
from prism_cli.endpoint.pictures import shrunk
from prism_cli.endpoint.requests import describe, most_prompt_tokens, wire_messages
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import DataError


def encoded(kind: str, size: tuple[int, int] = (400, 300), mode: str = "RGB", **rest) -> bytes:
    """A picture whose left half is dark."""
    picture = Image.new("RGB", size, "white")
    picture.paste("black", (0, 0, size[0] // 2, size[1]))
    written = io.BytesIO()
    picture.convert(mode).save(written, format=kind, **rest)
    return written.getvalue()


def opened(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image))


def bomb(side: int) -> bytes:
    """A PNG that says it has side × side pixels, in a hundred bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_larger_picture_is_scaled_down_as_the_same_kind_of_file(kind):
    small = opened(shrunk(encoded(kind), 30_000))
    # 400 × 300 = 120,000 pixels; a quarter of them is half of each side.
    assert (small.format, small.size) == (kind, (200, 150))
    grey = small.convert("L")
    left, right = grey.getpixel((10, 75)), grey.getpixel((190, 75))
    assert left < 30
    assert right > 225


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_of_png_can_be_scaled_down(mode):
    image = encoded("PNG", mode="L") if mode == "I;16" else encoded("PNG", mode=mode)
    if mode == "I;16":
        written = io.BytesIO()
        opened(image).convert("I").point(lambda value: value * 257).convert("I;16").save(written, format="PNG")
        image = written.getvalue()
        assert opened(image).mode == "I;16"
    small = opened(shrunk(image, 30_000)).convert("L")
    assert small.size == (200, 150)
    assert (small.getpixel((10, 75)) < 30, small.getpixel((190, 75)) > 225) == (True, True)


def test_a_picture_that_is_small_enough_goes_byte_for_byte():
    image = encoded("JPEG", quality=3)
    assert shrunk(image, 400 * 300) is image


def test_a_picture_taken_sideways_is_sent_the_right_way_up():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to view
    small = opened(shrunk(encoded("JPEG", exif=exif), 30_000))
    assert small.size == (150, 200)
    assert small.convert("L").getpixel((75, 10)) < 30, "the dark left half is on top now"
    assert small.getexif().get(0x0112, 1) == 1, "or a reader would turn it once more"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [20_000, 10_000])
@pytest.mark.parametrize("max_pixels", [1, 30_000])
def test_a_bomb_is_refused_without_being_decoded(max_pixels, side):
    endpoint = endpoint_at("http://h/v1", max_image_pixels=max_pixels)
    with pytest.raises(DataError, match="row 7: an image too large to decode"):
        describe(ask("q", images=(encoded("PNG"), bomb(side)), row="7"), endpoint)


def test_a_file_cut_off_midway_is_named():
    image = encoded("JPEG", (2000, 2000))
    request = ask("q", images=(image[: len(image) // 2],), row="7")
    with pytest.raises(DataError, match="row 7: an image that can't be read"):
        wire_messages(request, 30_000)


def test_a_file_cut_off_midway_fails_its_row_alone(tmp_path):
    image = encoded("JPEG", (2000, 2000))
    broken = ask("q", images=(image[: len(image) // 2],), row="7")
    with FaultyEndpoint() as endpoint, connecting(endpoint.url, AnswerStore(tmp_path / "a.sqlite")) as connect:
        failed, other = outcomes(connect(max_image_pixels=30_000), [broken, ask("r")])
    assert isinstance(failed, NoAnswerError)
    assert (failed.reason, "row 7: an image that can't be read" in str(failed)) == ("unreadable picture", True)
    assert other.text == "answer to r"


@pytest.mark.parametrize(
    ("size", "most", "tokens"), [((10, 10), None, 300), ((1000, 750), None, 2000), ((1000, 750), 375_000, 1000)]
)
def test_the_most_tokens_of_a_question_are_a_byte_each_and_twice_a_pictures(size, most, tokens):
    request = ask("Straße?", images=(encoded("PNG", size),))
    # 8 bytes, and 16 around them; a picture is 2 tokens for 750 pixels as sent, at least 300.
    assert most_prompt_tokens(request, most) == 24 + tokens


def test_the_limit_is_part_of_the_key_only_where_a_picture_is_larger():
    request = ask("q", images=(encoded("PNG"),))
    plain = describe(request, endpoint_at("http://h/v1"))
    assert describe(request, endpoint_at("http://h/v1", max_image_pixels=120_000)) == plain
    small, smaller = [describe(request, endpoint_at("http://h/v1", max_image_pixels=most)) for most in (119_999, 100)]
    assert len({plain, small, smaller}) == 3


def test_what_is_sent_is_the_smaller_picture():
    (message,) = wire_messages(ask("q", images=(encoded("PNG"),)), 30_000)
    url = message["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert opened(base64.b64decode(url.partition(",")[2])).size == (200, 150)


def test_the_client_asks_with_the_smaller_picture_and_anew_for_another_size(tmp_path):
    request = ask("q", images=(encoded("PNG"),))
    with FaultyEndpoint() as endpoint, connecting(endpoint.url, AnswerStore(tmp_path / "a.sqlite")) as connect:
        for most in (30_000, 30_000, 7_500):
            results(connect(max_image_pixels=most), request)
        urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in endpoint.bodies]
    assert [opened(base64.b64decode(url.partition(",")[2])).size for url in urls] == [(200, 150), (100, 75)]
