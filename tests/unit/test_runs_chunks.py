"""Results kept chunk by chunk: cut by a kill at any byte, the rest is made again and all is as without a kill."""

import json

import pytest

from prism_cli.runs.chunks import chunks, in_chunks, kept_results
from prism_cli.runs.files import read_lines, write_lines


class Work:
    """Makes results that depend on their chunk, as those of a seed do; notes what it made."""

    def __init__(self):
        self.made = []

    def __call__(self, span):
        self.made += span
        return [{"chunk": span.start, "text": "é" * (i % 3), "number": i} for i in span]


SPANS = chunks(7, 3)


@pytest.fixture
def complete(tmp_path):
    in_chunks(tmp_path / "complete.jsonl", SPANS, Work())
    return (tmp_path / "complete.jsonl").read_bytes()


def test_a_chunk_cut_by_a_kill_at_any_byte_is_made_again(tmp_path, complete):
    lines = complete.split(b"\n")[:-1]
    ends = [sum(len(line) + 1 for line in lines[: span.stop]) for span in SPANS]
    for cut in range(len(complete) + 1):
        path, work = tmp_path / "cut.jsonl", Work()
        path.write_bytes(complete[:cut])
        results = in_chunks(path, SPANS, work)
        assert path.read_bytes() == complete
        assert results == [json.loads(line) for line in lines]
        assert work.made == [i for span, end in zip(SPANS, ends, strict=True) if end > cut for i in span]


def test_chunks_of_another_size_keep_what_is_complete_by_theirs(tmp_path):
    path = tmp_path / "kept.jsonl"
    write_lines(path, range(5))
    assert kept_results(path, chunks(9, 2)) == [0, 1, 2, 3]
    assert kept_results(path, chunks(4, 4)) == [0, 1, 2, 3]
    assert kept_results(path, chunks(9, 8)) == []
    assert path.read_text() == ""


def test_progress_counts_what_there_was(tmp_path):
    path, counts = tmp_path / "kept.jsonl", []
    write_lines(path, range(3))
    in_chunks(path, SPANS, list, counts.append)
    assert counts == [3, 6, 7]


def test_lines_a_kill_cut_off_are_no_lines(tmp_path):
    (tmp_path / "x.jsonl").write_bytes('{"a": 1}\n{"a": 2}\n{"a": "é'.encode()[:-1])
    assert read_lines(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_lines(tmp_path / "none.jsonl") == []
