import base64
import contextlib
import http.server
import ipaddress
import os
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from prism_cli.data.download import fetch, is_public
from prism_cli.data.images import ImageReader
from prism_cli.endpoint.pictures import image_bytes
from prism_cli.errors import DataError

PNG = b"\x89PNG picture"


@pytest.fixture
def folder(tmp_path):
    """A data folder with a picture, beside one that is not the data's."""
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "deep/red.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(b"secret")
    return data


def refused(reader, reference):
    with pytest.raises(DataError) as caught:
        reader.read(reference)
    assert caught.value.hint
    return str(caught.value)


# Bytes and files ------------------------------------------------------------------------------------------------------


def test_a_local_picture_is_named_by_its_path_and_not_copied(folder):
    found = ImageReader(folder).read("deep/red.png")
    assert found == {"bytes": None, "path": str(folder / "deep/red.png")}
    assert image_bytes(found) == PNG


@pytest.mark.parametrize(
    "reference",
    [PNG, {"bytes": PNG, "path": "/etc/passwd"}, "data:image/png;base64," + base64.b64encode(PNG).decode()],
    ids=["bytes", "bytes with a name", "data URL"],
)
def test_bytes_are_taken_as_they_are(folder, reference):
    found = ImageReader(None).read(reference)
    assert found == {"bytes": PNG, "path": None}
    assert image_bytes(found) == PNG


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "deep/../../secret.png",
        "/etc/passwd",
        "//etc/passwd",
        "~/../../etc/passwd/../../../../../../etc/passwd",
        {"bytes": None, "path": "../secret.png"},
        {"bytes": b"", "path": "/etc/passwd"},
    ],
)
def test_a_picture_outside_the_folder_is_refused(folder, name):
    assert "leaves the data's folder" in refused(ImageReader(folder), name)


def test_a_link_that_leads_outside_is_refused_and_one_inside_is_followed(folder):
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    (folder / "in.png").symlink_to(folder / "deep/red.png")
    reader = ImageReader(folder)
    assert "leaves the data's folder" in refused(reader, "out.png")
    assert "leaves the data's folder" in refused(reader, "up/secret.png")
    assert image_bytes(reader.read("in.png")) == PNG


def test_a_folder_that_is_a_link_itself_is_the_folder(folder):
    (folder.parent / "link").symlink_to(folder)
    assert image_bytes(ImageReader(folder.parent / "link").read("deep/red.png")) == PNG


def test_what_is_no_file_is_refused(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    for name in ("pipe.png", "deep", "none.png", "circle.png", "a\0b.png", "x" * 5000):
        assert repr(name[:20])[:-1] in refused(ImageReader(folder), name)


@pytest.mark.parametrize("reference", [None, 3, "", {}, {"bytes": None, "path": None}, ["a.png"], {"url": 3}])
def test_what_names_nothing_is_refused(folder, reference):
    assert refused(ImageReader(folder), reference).startswith("it is ")


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:image/png;base64,@@", "data:"])
def test_broken_data_urls_are_refused(folder, url):
    assert "data: URL" in refused(ImageReader(folder), url)


def test_a_hub_row_can_not_name_a_local_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "no picture but a name" in refused(ImageReader(None), "deep/red.png")
    assert "no picture but a name" in refused(ImageReader(None), "/etc/passwd")


def test_a_picture_that_is_gone_is_told(folder):
    found = ImageReader(folder).read("deep/red.png")
    (folder / "deep/red.png").unlink()
    with pytest.raises(DataError, match=r"red\.png can't be read: No such file"):
        image_bytes(found)


# URLs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["https://example.org/a.png", "http://127.0.0.1/a.png", "file:///etc/passwd", "ftp://example.org/a", "HTTP://x/a"],
)
def test_no_url_is_fetched_unless_its_host_is_allowed(folder, url):
    assert "is not fetched" in refused(ImageReader(folder), url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.png", "gopher://host/", "https://me:key@host/a"])
def test_an_allowed_host_is_asked_by_http_alone(url):
    with pytest.raises(DataError, match="is not fetched"):
        fetch(url, ["host", ""])


HERE = ["127.0.0.1", "[::1]", "localhost", "169.254.169.254", "2130706433", "0x7f000001", "127.1", "0.0.0.0", "[::]"]
HERE += ["10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]"]
HERE += ["[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255", "240.0.0.1", "LOCALHOST."]
HERE += ["[::7f00:1]", "[64:ff9b:1::7f00:1]", "[fec0::1]"]


@pytest.mark.parametrize("host", HERE)
def test_an_allowed_host_inside_this_machine_or_its_network_is_refused(host):
    name = host.strip("[]")
    with pytest.raises(DataError, match="is not on the open internet"):
        fetch(f"http://{host}/latest/meta-data", [name])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address))


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a picture, a redirect, a flood or a drip."""

    def do_GET(self):
        port = self.server.server_address[1]
        self.server.asked.append((self.headers["Host"], self.path))
        moved = {
            "/away": f"http://elsewhere.example:{port}/a.png",
            "/inside": f"http://127.0.0.1:{port}/a.png",
            "/file": "file:///etc/passwd",
            "/near": "a.png",
            "/round": "/round",
        }
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
            self.end_headers()
            return
        if self.path == "/drip":
            with contextlib.suppress(OSError):
                for letter in b"HTTP/1.0 200 OK\r\nX-Slow: " + b"x" * 40:
                    time.sleep(0.05)
                    self.wfile.write(bytes([letter]))
            return
        self.send_response(404 if self.path == "/none" else 200)
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(b"x" * 300_000 if self.path == "/flood" else PNG)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as served:
        served.asked = []
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


class Names:
    """Names that resolve to 127.0.0.1; of one that rebinds, the second look-up gives another address."""

    def __init__(self):
        self.asked = []
        self.rebinds = False
        self.real = socket.getaddrinfo

    def __call__(self, host, port, *args, **kwargs):
        if "example" not in str(host):
            return self.real(host, port, *args, **kwargs)
        self.asked.append(host)
        address = "127.0.0.2" if self.rebinds and len(self.asked) > 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]


@pytest.fixture
def names(monkeypatch):
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    return found


def get(server, path, hosts=("pictures.example",), **options):
    """What an allowed host serves; the server is at 127.0.0.1, which the real rule would refuse."""
    allow = {"may_reach": lambda address: address.is_loopback, **options}
    return fetch(f"http://pictures.example:{server.server_address[1]}{path}", hosts, **allow)


def test_an_allowed_host_is_asked_under_its_name_at_the_address_that_was_judged(server, names):
    names.rebinds = True
    assert get(server, "/a.png") == PNG
    assert names.asked == ["pictures.example"]
    assert server.asked[-1] == (f"pictures.example:{server.server_address[1]}", "/a.png")


def test_hosts_are_compared_without_case(server, names):
    assert get(server, "/a.png", ["Pictures.EXAMPLE"]) == PNG


def test_a_redirect_is_followed_among_allowed_hosts_only(server, names):
    assert get(server, "/near") == PNG
    assert get(server, "/away", ["pictures.example", "elsewhere.example"], may_reach=lambda address: True) == PNG


@pytest.mark.parametrize(
    ("path", "hosts", "message"),
    [
        ("/away", ["pictures.example"], "elsewhere.example is not allowed"),
        ("/inside", ["pictures.example"], "127.0.0.1 is not allowed"),
        ("/file", ["pictures.example"], "is not fetched"),
        ("/round", ["pictures.example"], "redirected more than 5 times"),
        ("/none", ["pictures.example"], "answers 404"),
        ("/packed", ["pictures.example"], "answers compressed"),
    ],
)
def test_bad_answers_are_refused(server, names, path, hosts, message):
    with pytest.raises(DataError, match=message):
        get(server, path, hosts, may_reach=lambda address: True)


def test_a_redirect_into_this_machine_is_judged_again(server, names):
    def first_only(address, seen=[]):  # noqa: B006  (it counts calls)
        seen.append(address)
        return len(seen) == 1

    with pytest.raises(DataError, match="not on the open internet"):
        get(server, "/inside", ["pictures.example", "127.0.0.1"], may_reach=first_only)


def test_a_picture_is_read_to_a_limit(server, names):
    with pytest.raises(DataError, match="has more than 0 MB"):
        get(server, "/flood", largest=200_000)


def test_the_deadline_holds_for_a_header_that_drips_and_a_name_that_is_slow(server, names, monkeypatch):
    with pytest.raises(DataError, match="takes too long"):
        get(server, "/drip", seconds=0.5)
    given_up = threading.Event()

    def slow(*args, **kwargs):
        given_up.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(DataError, match="takes too long"):
        get(server, "/a.png", seconds=0.5)
    given_up.set()


def test_no_proxy_of_the_environment_is_asked(server, names, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert get(server, "/a.png") == PNG


def test_a_host_that_does_not_answer_is_told(names):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://pictures.example:{nobody.getsockname()[1]}/a.png"
        with pytest.raises(DataError, match="can't be fetched"):
            fetch(url, ["pictures.example"], may_reach=lambda address: True)


def test_a_name_nobody_knows_is_told():
    url = "http://nobody.invalid/a.png"
    with pytest.raises(DataError, match=f"host {urlsplit(url).hostname} is not known"):
        fetch(url, ["nobody.invalid"])
