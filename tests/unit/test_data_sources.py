import csv
import json
import os
import tracemalloc
from itertools import islice
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prism_cli.data import lines
from prism_cli.data.hub import HubName
from prism_cli.data.sources import open_source
from prism_cli.errors import DataError

ROWS = [{"question": f"q{i}", "answer": str(i)} for i in range(5)]


def write(file, rows=ROWS):
    """The rows in the form of the file's suffix."""
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=2))
    elif file.suffix == ".csv":
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    return file


def read(path, limit=None):
    return list(open_source(str(path), limit))


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "first"), [("jsonl", 1), ("json", 1), ("csv", 2), ("parquet", 1)])
def test_every_kind_of_file_gives_its_rows_with_their_numbers(tmp_path, suffix, first):
    rows = read(write(tmp_path / f"rows.{suffix}"))
    assert [row.fields for row in rows] == ROWS
    assert [row.number for row in rows] == list(range(first, first + 5))
    assert {(row.file, row.folder) for row in rows} == {(f"rows.{suffix}", tmp_path)}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_the_limit_takes_the_first_rows(tmp_path, suffix):
    assert [row.fields for row in read(write(tmp_path / f"rows.{suffix}"), 2)] == ROWS[:2]


def test_a_broken_line_is_one_problem_and_not_the_end(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n\n[1]\n"\xff"\n' + b"[" * 100_000 + b'\n{"a": 2}')
    rows = read(file)
    assert [(row.number, row.fields) for row in rows if row.fields] == [(1, {"a": 1}), (7, {"a": 2})]
    assert {row.number: row.problem for row in rows if row.problem} == {
        2: "it is not JSON: Expecting value (column 7)",
        4: "expected an object of columns, found [1]",
        5: "it is not UTF-8 (byte 2)",
        6: "its JSON is nested too deep",
    }


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        file = write(tmp_path / name)
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert [row.fields for row in read(file)] == ROWS


def test_a_json_file_of_lines_is_read_by_lines(tmp_path):
    file = write(tmp_path / "rows.jsonl").rename(tmp_path / "rows.json")
    assert [row.fields for row in read(file)] == ROWS


def test_an_array_gives_its_objects_and_what_is_none_is_a_problem_of_its_row(tmp_path):
    rows = [{"a": 1.5, "b": ["x", {"c": None}], "d": 'a "quoted", \\ text ] }'}, {}, {"a": "ü" * 40}, {"n": -12}]
    assert [row.fields for row in read(write(tmp_path / "rows.json", rows))] == rows
    (tmp_path / "numbers.json").write_text("[123, 45]")
    assert [row.problem for row in read(tmp_path / "numbers.json")] == [
        "expected an object of columns, found 123",
        "expected an object of columns, found 45",
    ]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[{"a": 1},\n {"a" 2}, {"a": 3}]', "line 2, column 7"),
        ('[{"a": 1}, ', "line 1, column 12"),
        ('[{"a": 1} {"a": 2}]', "line 1, column 11"),
        ('[{"a": 1}', "line 1, column 10"),
        ('[{"a": 1}]\nx', "line 2, column 1"),
        ('[{"a": 1}]\n{"a": 3}', "line 2, column 1"),
        ('[{"a": 1}]' + " \n" * 200_000 + "]", "line 200001, column 1"),
        ("[" + "[" * 100_000, "nested too deep"),
        (f'[{{"a": {"1" * 5000}}}]', "too many digits"),
    ],
)
def test_a_broken_array_is_refused_with_the_place(tmp_path, text, where):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=where) as raised:
        read(tmp_path / "rows.json")
    assert "JSON Lines" in raised.value.hint


def test_an_array_too_large_for_memory_is_refused_with_the_command_that_converts_it(tmp_path, monkeypatch):
    file = write(tmp_path / "my rows.json")
    monkeypatch.setattr(lines, "LARGEST_ARRAY", 10)
    with pytest.raises(DataError, match=r"one JSON array of 0\.0 GB") as raised:
        read(file)
    assert raised.value.hint.endswith(f"jq -c '.[]' '{file}' > '{file}l'")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_reading_a_large_file_holds_a_small_part_of_it(tmp_path, suffix):
    rows = [{"question": Random(i).randbytes(5000).hex()} for i in range(2000)]  # nothing that could be packed
    file, most = write(tmp_path / f"rows.{suffix}", rows), 6_000_000  # of 20 million
    if suffix == "parquet":  # one row group of 80 million; whole pages of it are held, however large it is
        most = 30_000_000
        pq.write_table(pa.concat_tables([pa.Table.from_pylist(rows)] * 4), file)
    before, arrow, last = pa.total_allocated_bytes(), 0, None
    tracemalloc.start()
    try:
        for row in open_source(str(file)):
            last, arrow = row, max(arrow, pa.total_allocated_bytes() - before)  # which Python can't see
        assert last is not None
        assert last.fields == rows[-1]
        assert tracemalloc.get_traced_memory()[1] + arrow < most
    finally:
        tracemalloc.stop()


def test_csv_lines_are_numbered_where_they_begin(tmp_path):
    (tmp_path / "rows.csv").write_text('a,b\n1,"two\nlines"\n\n3,4,5\n6\n')
    rows = read(tmp_path / "rows.csv")
    assert [(row.number, row.fields, row.problem) for row in rows] == [
        (2, {"a": "1", "b": "two\nlines"}, None),
        (5, None, "it has more values than the header has names"),
        (6, {"a": "6", "b": None}, None),
    ]


def test_an_unclosed_quote_swallows_no_rows_in_silence(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text('a,b\n1,"x\n2,y\n3,"z"\n4,w\n')
    rows = read(tmp_path / "rows.csv")
    assert [(row.number, row.fields) for row in rows] == [(2, None), (5, {"a": "4", "b": "w"})]
    assert rows[0].problem.endswith("(lines 2 to 4 are lost)")
    (tmp_path / "rows.csv").write_text('a,b\n1,"x\n2,y\n3,z\n')
    assert [(row.number, "(lines 2 to 4 are lost)" in row.problem) for row in read(tmp_path / "rows.csv")] == [
        (2, True)
    ]
    monkeypatch.setattr(lines, "LONGEST_FIELD", 4)
    assert [(row.number, row.fields) for row in read(tmp_path / "rows.csv")] == [(2, None), (4, {"a": "3", "b": "z"})]


def test_lists_of_csv_are_written_in_json(tmp_path):
    (tmp_path / "rows.csv").write_text(
        'answer,answers,images\n"[1, 2]","[""a"", ""b""]","[""a.png""]"\n[1,[1,[x].png\n'
    )
    assert [row.fields for row in read(tmp_path / "rows.csv")] == [
        {"answer": "[1, 2]", "answers": ["a", "b"], "images": ["a.png"]},
        {"answer": "[1", "answers": "[1", "images": "[x].png"},
    ]


STRANGE = ['"\\ud800"', "1" * 5000, "[" * 500 + "]" * 500, "[" * 100_000]


@pytest.mark.parametrize("value", STRANGE, ids=["half a character", "a huge number", "deep", "too deep for Python"])
def test_a_value_that_can_not_be_used_is_a_problem_of_its_row(tmp_path, value):
    (tmp_path / "rows.jsonl").write_text(f'{{"a": 1}}\n{{"a": {value}}}\n{{"a": 3}}\n')
    rows = read(tmp_path / "rows.jsonl")
    assert [row.fields for row in rows] == [{"a": 1}, None, {"a": 3}]
    assert rows[1].problem


@pytest.mark.parametrize("value", STRANGE[::2], ids=["half a character", "deep"])
def test_a_value_of_an_array_that_can_not_be_used_is_a_problem_of_its_row(tmp_path, value):
    (tmp_path / "rows.json").write_text(f'[{{"a": 1}}, {{"a": {value}}}]')
    assert [row.fields for row in read(tmp_path / "rows.json")] == [{"a": 1}, None]


def test_a_parquet_text_that_is_not_utf8_is_a_problem_of_its_row(tmp_path):
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"a": texts}), tmp_path / "rows.parquet")
    rows = read(tmp_path / "rows.parquet")
    assert [(row.number, row.fields) for row in rows] == [(1, {"a": "a"}), (2, None), (3, {"a": "c"})]
    assert rows[1].problem == "a text in it is not UTF-8"


def test_csv_that_is_not_utf8_is_a_problem_of_its_row(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"a\n\xff\nfine\n")
    assert [row.problem for row in read(tmp_path / "rows.csv")] == ["it is not UTF-8", None]
    (tmp_path / "rows.csv").write_bytes(b"\xe9\nfine\n")
    assert [row.problem for row in read(tmp_path / "rows.csv")] == ["the header is not UTF-8, so nothing can be read"]


def test_a_damaged_parquet_file_is_told(tmp_path):
    file = write(tmp_path / "rows.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"rows\.parquet"):
        open_source(str(file))
    file.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    assert "can't be read" in read(file)[-1].problem


# Folders and names ----------------------------------------------------------------------------------------------------


def test_a_folder_is_its_files_in_order_and_not_deeper(tmp_path):
    for name in ("b.jsonl", "a.csv", "notes.txt", "deeper/c.jsonl", "rejected.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    assert [row.file for row in read(tmp_path)] == ["a.csv"] * 5 + ["b.jsonl"] * 5


@pytest.mark.parametrize("name", ["none.jsonl", "./none", "rows.xml", "empty.jsonl", "folder"])
def test_what_is_no_source_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.xml").write_text("<a/>")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as caught:
        open_source(name)
    assert name in str(caught.value)
    assert caught.value.hint


def test_a_pattern_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"no file \*\.jsonl"):
        open_source("*.jsonl")


def test_the_fingerprint_follows_what_is_there(tmp_path):
    file = write(tmp_path / "rows.jsonl")
    first = open_source(str(file)).fingerprint()
    assert open_source(str(file)).fingerprint() == first
    assert open_source(str(file), 3).fingerprint() != first
    os.utime(file, ns=(0, 1))
    assert open_source(str(file)).fingerprint() != first


def test_the_number_of_rows_is_known_where_the_file_says_it(tmp_path):
    file = write(tmp_path / "rows.parquet")
    assert (open_source(str(file)).count(), open_source(str(file), 3).count()) == (5, 3)
    assert open_source(str(write(tmp_path / "rows.jsonl"))).count() is None


# The hub --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("prism-vlm/gemini_distill", HubName("prism-vlm/gemini_distill", None, "train", None)),
        ("a/b@test", HubName("a/b", None, "test", None)),
        ("a/b:geo", HubName("a/b", "geo", "train", None)),
        ("a/b:geo@test", HubName("a/b", "geo", "test", None)),
        ("squad", HubName("squad", None, "train", None)),
        ("a/b/deep/rows.parquet", HubName("a/b", None, "train", "deep/rows.parquet")),
    ],
)
def test_hub_names(text, name):
    assert HubName.of(text) == name


@pytest.mark.parametrize("name", ["@x", ":x", ":x@y"])
def test_a_split_of_nothing_is_refused(name):
    with pytest.raises(DataError, match="names no data set"):
        open_source(name)


def test_a_hub_set_that_can_not_be_reached_is_told():
    with pytest.raises(DataError, match="no file prism-vlm/none here, nor on the hub"):
        open_source("prism-vlm/none")


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n' * 3)
    rows = iter(open_source(str(file)))
    assert len(list(islice(rows, 2))) == 2
