"""Reading from the hub: a small hub on 127.0.0.1, and a process of its own, since libraries read its address once."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

COMMIT = "a" * 40
READ = """
import json, sys
from prism_cli.data.load import load_rows
from prism_cli.data.rows import undecoded
from prism_cli.errors import DataError
for name in sys.argv[1:]:
    try:
        rows = undecoded(load_rows(name).rows)
        found = [[row["id"], row["prompt"][0]["content"], [len(i["bytes"]) for i in row["images"]]] for row in rows]
    except DataError as error:
        found = str(error)
    print(json.dumps(found))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers about its only data set, `own/set`."""

    files: dict[str, bytes]

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/own/set/tree/"):
            folder = path.removeprefix(f"/api/datasets/own/set/tree/{COMMIT}").strip("/")
            listed = [{"type": "file", "path": f, "size": len(c), "oid": "b" * 40} for f, c in self.files.items()]
            self.answer(200, json.dumps([f for f in listed if f["path"].startswith(folder)]).encode())
        elif path.startswith("/api/datasets/own/set"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(200, json.dumps({"id": "own/set", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            content = self.files.get(path.partition(f"/resolve/{COMMIT}/")[2])
            self.answer(404 if content is None else 200, content or b"")

    do_HEAD = do_GET

    def answer(self, code, content):
        part, size = content, len(content)
        if code == 200 and (wanted := self.headers.get("Range")):
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            code, part = 206, content[first : last + 1]
        self.send_response(code)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{"d" * 40}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        if code == 404:
            self.send_header(
                "X-Error-Code", "EntryNotFound" if self.path.startswith("/datasets/own") else "RepoNotFound"
            )
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """Reads data sets by name from a hub that serves `own/set`."""
    PILImage.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    picture = (tmp_path / "red.png").read_bytes()
    rows = {"image": [{"bytes": picture, "path": None}] * 2, "question": ["one?", "two?"]}
    features = Features({"image": Image(), "question": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    Hub.files = {
        "train.parquet": (tmp_path / "train.parquet").read_bytes(),
        "deep/more.jsonl": b'{"prompt": "three?"}\n',
        "deep/local.jsonl": b'{"question": "?", "image": "red.png"}\n',
    }

    def read(*names):
        address = f"http://127.0.0.1:{server.server_address[1]}"
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", READ, *names],
            env={**os.environ, **settings, "HF_HUB_DISABLE_XET": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()], len(picture)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield read
        server.shutdown()


def test_rows_are_streamed_from_the_hub_by_every_kind_of_name(hub):
    names = ("own/set", "own/set/deep/more.jsonl", "own/set@test", "own/set/deep/local.jsonl", "own/none")
    (whole, file, split, local, none), size = hub(*names)
    assert whole == [["set-1", "one?", [size]], ["set-2", "two?", [size]]]
    assert file == [["more-1", "three?", []]]
    assert "can't read own/set@test from the hub" in split
    assert "Available splits: ['train']" in split
    assert "'red.png' is no picture but a name" in local  # a file of that name lies in the working folder
    assert "no file own/none here, nor on the hub" in none
