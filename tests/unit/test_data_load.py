import io
import itertools
import json
import os
import struct
import zlib

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from prism_cli.assembly.data import resolve_data
from prism_cli.data import reading
from prism_cli.data.formats import detect
from prism_cli.data.lengths import refuse_mixed
from prism_cli.data.load import load_rows, stream_rows
from prism_cli.data.reading import Checks
from prism_cli.data.rows import FEATURES, dataset, row, undecoded, with_instruction
from prism_cli.errors import DataError
from prism_cli.recipes.sections import FileData
from prism_cli.responses import Grammar, Part
from prism_cli.rewards.accuracy import is_correct


def png(colour, size=16):
    buffer = io.BytesIO()
    PILImage.new("RGB", (size, size), colour).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A data folder with two pictures, and one outside of it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "red.png").write_bytes(png("red"))
    (data / "blue.png").write_bytes(png("blue"))
    (tmp_path / "secret.png").write_bytes(png("black"))
    return data


def jsonl(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder / "rows.jsonl")


def load(path, **options):
    return load_rows(path, **options).rows


def refused(path, **options):
    with pytest.raises(DataError) as caught:
        load_rows(path, **options)
    assert caught.value.hint
    return str(caught.value)


ROWS = [
    {"image": "red.png", "question": "colour?", "answer": "red"},
    {"image": "blue.png", "question": "?", "answer": "blue"},
]


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_question_with_an_answer(folder):
    (only,) = load(jsonl(folder, {"image": "red.png", "question": "<image>colour?", "answer": "red"}))
    assert only["prompt"] == [{"role": "user", "content": "colour?"}]
    assert (only["id"], only["answers"], only["demonstration"]) == ("rows-1", ["red"], None)
    assert only["images"][0].getpixel((0, 0)) == (255, 0, 0)


def test_a_rows_own_system_message_stays_and_is_not_doubled(folder):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "colour?"}]
    path = jsonl(folder, {"prompt": turns}, {"prompt": turns[1:]})
    for rows in (with_instruction(load(path), "I."), load(path, instruction="I.")):
        systems = [[m["content"] for m in prompt if m["role"] == "system"] for prompt in rows["prompt"]]
        assert systems == [["Be brief."], ["I."]]


def test_several_pictures_and_answers(folder):
    fields = {"images": ["red.png", "blue.png"], "question": "<image><image> colours?", "answers": ["red", "2"]}
    (only,) = load(jsonl(folder, {**fields, "id": "mine"}))
    assert (only["id"], only["answers"], len(only["images"])) == ("mine", ["red", "2"], 2)
    assert only["images"][1].getpixel((0, 0)) == (0, 0, 255)


def test_a_row_without_a_picture_is_a_row(folder):
    (only,) = load(jsonl(folder, {"question": "2 + 2?", "answer": "4"}))
    assert only["images"] == []


def test_a_local_picture_is_not_copied_and_one_given_as_bytes_keeps_them(folder):
    features = Features({"image": Image(), "question": Value("string")})
    data = Dataset.from_dict({"image": [{"bytes": png("red"), "path": None}], "question": ["?"]}, features=features)
    data.to_parquet(folder / "rows.parquet")
    (held,) = undecoded(load(str(folder / "rows.parquet")))
    assert held["images"] == [{"bytes": png("red"), "path": None}]
    (named,) = undecoded(load(jsonl(folder, ROWS[0])))
    assert named["images"] == [{"bytes": None, "path": str(folder / "red.png")}]


def test_files_of_a_folder_may_be_in_different_formats(folder):
    jsonl(folder, ROWS[0])
    (folder / "more.jsonl").write_text(json.dumps({"conversations": [{"from": "human", "value": "colour?"}]}) + "\n")
    loaded = load_rows(str(folder))
    assert (list(loaded.rows["id"]), loaded.format) == (["more-1", "rows-1"], "sharegpt, plain")


def test_every_row_of_a_file_has_its_own_format(folder):
    verl = {"data_source": "x", "prompt": [{"role": "user", "content": "b?"}], "reward_model": {"ground_truth": "2"}}
    loaded = load_rows(jsonl(folder, {"question": "a?", "answer": "1"}, verl, {"question": "c?", "answer": "3"}))
    assert (loaded.rows["answers"][:], loaded.format) == ([["1"], ["2"], ["3"]], "plain, verl")


def test_an_image_folder_s_metadata_names_its_pictures(folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "red.png", "question": "colour?"}) + "\n")
    assert load(str(folder))[0]["images"][0].getpixel((0, 0)) == (255, 0, 0)


def test_the_format_can_be_forced(folder):
    fields = {"question": "plain?", "messages": [{"role": "user", "content": "turns?"}]}
    path = jsonl(folder, fields)
    assert [load(path, format=name)[0]["prompt"][0]["content"] for name in ("auto", "plain")] == ["turns?", "plain?"]


def test_the_limit_takes_the_first_rows(folder):
    assert list(load(jsonl(folder, *ROWS), limit=1)["answers"]) == [["red"]]


# Bad rows -------------------------------------------------------------------------------------------------------------


def test_every_bad_row_is_named_at_once(folder):
    path = jsonl(folder, ROWS[0], {"image": "none.png", "question": "?"}, ROWS[1], {"image": "red.png", "answer": "x"})
    lines = [line.strip() for line in refused(path).splitlines()]
    assert lines[0].startswith("rows.jsonl:2: image: 'none.png' does not exist → ")
    assert lines[1].startswith("rows.jsonl:4: columns: no question in answer, image → ")
    assert len(lines) == 2


def test_a_flood_of_bad_rows_is_cut(folder):
    message = refused(jsonl(folder, *[{"image": "red.png", "question": ""}] * 30))
    assert message.count("rows.jsonl:") == 20
    assert "and 10 more" in message


def test_a_broken_line_is_a_bad_row(folder):
    (folder / "rows.jsonl").write_text('{"question": "a"}\n{"question": \n')
    assert refused(str(folder / "rows.jsonl")).startswith("rows.jsonl:2: row: it is not JSON")
    loaded = load_rows(str(folder / "rows.jsonl"), on_bad_row="skip")
    assert (list(loaded.rows["id"]), loaded.skipped, len(loaded.problems)) == (["rows-1"], 1, 1)


@pytest.mark.parametrize("name", ["../secret.png", "red/../../secret.png", "/etc/passwd"])
def test_a_picture_outside_the_folder_is_refused(folder, name):
    assert "leaves the data's folder" in refused(jsonl(folder, {"image": name, "question": "?"}))


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd"])
def test_no_url_is_fetched(folder, url):
    assert repr(url) in refused(jsonl(folder, {"image": url, "question": "?"}))


def test_an_allowed_host_in_this_machine_is_refused_all_the_same(folder):
    path = jsonl(folder, {"image": "http://localhost/a.png", "question": "?"})
    assert "not on the open internet" in refused(path, allow_urls=["localhost"])


def test_a_file_that_is_no_picture_is_refused(folder):
    (folder / "notes.png").write_text("not a picture")
    assert "rows.jsonl:1: image:" in refused(jsonl(folder, {"image": "notes.png", "question": "?"}))


@pytest.mark.parametrize(("marks", "images"), [(2, 1), (1, 2), (1, 0)])
def test_marks_and_pictures_must_agree(folder, marks, images):
    fields = {"question": "<image>" * marks + "?", "images": ["red.png"] * images}
    told = f"{marks} <image> mark{'s'[: marks != 1]} for {images} picture{'s'[: images != 1]}"
    assert told in refused(jsonl(folder, fields))


@pytest.mark.parametrize("kind", ["image", "image_url"])
@pytest.mark.parametrize("key", ["messages", "prompt"])
def test_a_picture_that_stands_in_a_message_alone_is_not_dropped_in_silence(folder, key, kind):
    turn = {"role": "user", "content": [{"type": kind, kind: "red.png"}, {"type": "text", "text": "colour?"}]}
    assert "rows.jsonl:1: images: 1 <image> mark for 0 pictures" in refused(jsonl(folder, {key: [turn]}))


def test_a_picture_too_large_to_open_is_refused_with_its_row(folder):
    data = bytearray(png("red"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # the header's width and height, under a checksum that agrees
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (folder / "bomb.png").write_bytes(data)
    assert "rows.jsonl:2: image: its header says" in refused(jsonl(folder, ROWS[0], {**ROWS[1], "image": "bomb.png"}))


def test_two_rows_of_one_id_are_refused(folder):
    message = refused(jsonl(folder, *({"id": "same", "question": question} for question in "ab")))
    assert message.startswith("rows.jsonl:2: id: 'same' is also the id of rows.jsonl:1")


def test_what_a_stage_needs_is_asked_of_every_row(folder):
    path = jsonl(folder, ROWS[0], {"question": "?"})
    assert "rows.jsonl:2: answers: there is none" in refused(path, checks=Checks("rl"))
    assert "rows.jsonl:1: demonstration: there is none" in refused(path, checks=Checks("sft"))
    form = Grammar({"all": Part(("answer",), 1.0)}, "answer")
    taught = jsonl(folder, {"question": "?", "teacher_response": "<answer>3"})
    assert "rows.jsonl:1: teacher_response: malformed" in refused(taught, checks=Checks("align", form))


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_is_refused(folder, content):
    (folder / "rows.jsonl").write_text(content)
    assert "rows.jsonl" in refused(str(folder / "rows.jsonl"))


@pytest.mark.parametrize("name", ["missing.jsonl", "rows.xml"])
def test_what_is_no_data_file_is_refused(folder, name):
    (folder / "rows.xml").write_text("<a/>")
    assert name in refused(str(folder / name))


def test_when_every_row_is_left_out_none_are_given(folder):
    assert "no rows that can be used" in refused(jsonl(folder, {"answer": "x"}), on_bad_row="skip")


def test_rows_with_and_without_a_picture_are_not_mixed_in_rollouts(folder):
    with pytest.raises(DataError, match="1 of 3 rows have no picture, the first is rows-2"):
        refuse_mixed(load(jsonl(folder, ROWS[0], {"question": "2 + 2?"}, ROWS[1])))
    refuse_mixed(load(jsonl(folder, *ROWS)))
    refuse_mixed(load(jsonl(folder, {"question": "2 + 2?"}, {"question": "2 + 3?"})))


# Prepared rows --------------------------------------------------------------------------------------------------------


class Counted:
    """How many rows were read."""

    def __init__(self):
        self.rows = 0

    def __call__(self, done, total):
        self.rows += 1


def prepared(path, cache, **options):
    """Rows through a cache, and how many had to be read for it."""
    counted = Counted()
    return load_rows(path, cache=cache, progress=counted, **options), counted.rows


def test_rows_are_prepared_once_and_memory_mapped(folder, tmp_path):
    path = jsonl(folder, *ROWS)
    first, read = prepared(path, tmp_path / "cache")
    again, read_again = prepared(path, tmp_path / "cache")
    assert (read, read_again) == (2, 0)
    assert list(undecoded(first.rows)) == list(undecoded(again.rows))
    assert (again.format, again.problems, again.skipped) == ("plain", [], 0)
    assert again.rows.cache_files[0]["filename"].endswith("rows.arrow")
    assert again.rows.features == FEATURES


@pytest.mark.parametrize(
    "options",
    [{"limit": 1}, {"format": "plain"}, {"instruction": "I."}, {"allow_urls": ["x.org"]}, {"checks": Checks("rl")}],
    ids=lambda options: next(iter(options)),
)
def test_other_options_prepare_rows_of_their_own(folder, tmp_path, options):
    path = jsonl(folder, *ROWS)
    prepared(path, tmp_path / "cache")
    assert prepared(path, tmp_path / "cache", **options)[1] > 0


def test_a_changed_file_or_picture_is_prepared_again(folder, tmp_path):
    path = jsonl(folder, *ROWS)
    prepared(path, tmp_path / "cache")
    (folder / "red.png").write_bytes(png("green", 17))
    changed, read = prepared(path, tmp_path / "cache")
    assert read == 2
    assert changed.rows[0]["images"][0].getpixel((0, 0)) == (0, 128, 0)
    (folder / "red.png").write_text("no picture")
    with pytest.raises(DataError, match="is no picture"):
        prepared(path, tmp_path / "cache")
    jsonl(folder, ROWS[1])
    assert prepared(path, tmp_path / "cache")[1] == 1


@pytest.mark.parametrize("reference", ["red.png", {"url": "red.png"}, {"path": "red.png"}, {"path": "link.png"}])
def test_a_picture_is_followed_however_it_is_named(folder, tmp_path, reference):
    (folder / "link.png").symlink_to(folder / "red.png")
    path = jsonl(folder, {"image": reference, "question": "?"})
    assert [prepared(path, tmp_path / "cache")[1] for _ in range(2)] == [1, 0]
    (folder / "red.png").write_bytes(png("green", 17))
    assert prepared(path, tmp_path / "cache")[1] == 1


def test_a_link_that_leads_elsewhere_now_is_prepared_again(folder, tmp_path):
    (folder / "link.png").symlink_to(folder / "red.png")
    path = jsonl(folder, {"image": "link.png", "question": "?"})
    prepared(path, tmp_path / "cache")
    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to(folder / "blue.png")
    loaded, read = prepared(path, tmp_path / "cache")
    assert (read, loaded.rows[0]["images"][0].getpixel((0, 0))) == (1, (0, 0, 255))


def test_rows_left_out_are_told_again_and_come_back_when_their_picture_does(folder, tmp_path):
    path = jsonl(folder, *ROWS, {"image": "late.png", "question": "?"})
    for read in (3, 0):
        loaded, done = prepared(path, tmp_path / "cache", on_bad_row="skip")
        assert (done, loaded.skipped, len(loaded.rows)) == (read, 1, 2)
        assert str(loaded.problems[0]).startswith("rows.jsonl:3: image: 'late.png' does not exist → ")
    assert "late.png" in refused(path, cache=tmp_path / "cache")
    (folder / "late.png").write_bytes(png("red"))
    assert len(load(path, cache=tmp_path / "cache")) == 3


def test_a_host_that_failed_is_asked_again_the_next_time(folder, tmp_path):
    path = jsonl(folder, ROWS[0], {"image": {"url": "http://x.invalid/a.png"}, "question": "?"})
    options = {"on_bad_row": "skip", "allow_urls": ["x.invalid"]}
    assert [prepared(path, tmp_path / "cache", **options)[1] for _ in range(2)] == [2, 2]


def test_a_kill_while_preparing_leaves_nothing_that_counts(folder, tmp_path):
    path = jsonl(folder, *ROWS)
    if (child := os.fork()) == 0:
        load_rows(path, cache=tmp_path / "cache", progress=lambda done, total: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = list((tmp_path / "cache").glob("*.partial"))
    assert len(left) == 1
    assert prepared(path, tmp_path / "cache")[1] == 2
    assert not left[0].exists()


def test_large_sets_are_written_by_batches(folder, tmp_path):
    path = jsonl(folder, *({"question": f"q{i}", "answer": str(i)} for i in range(600)))
    rows = load(path, cache=tmp_path / "cache")
    assert list(rows["id"]) == [f"rows-{i}" for i in range(1, 601)]
    assert rows[599]["answers"] == ["599"]


def test_what_was_prepared_of_an_earlier_state_is_removed(folder, tmp_path):
    path = jsonl(folder, *ROWS)
    prepared(path, tmp_path / "cache")
    prepared(path, tmp_path / "cache", limit=1)
    jsonl(folder, *ROWS, {"question": "?"})
    prepared(path, tmp_path / "cache")
    assert sum(found.is_dir() for found in (tmp_path / "cache").iterdir()) == 2


def test_several_processes_read_what_one_reads(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ALONE", 10)
    path = jsonl(
        folder, *({**ROWS[i % 2], "id": str(i % 97)} for i in range(100)), {"image": "none.png", "question": "?"}
    )
    options = {"on_bad_row": "skip", "checks": Checks("rl", None, is_correct)}
    one, several = (prepared(path, tmp_path / str(n), processes=n, **options)[0] for n in (1, 2))
    assert list(undecoded(one.rows)) == list(undecoded(several.rows))
    assert one[1:] == several[1:]
    assert (len(one.rows), one.skipped) == (97, 4)


# Streams --------------------------------------------------------------------------------------------------------------


def ids(stream, count):
    return [found["id"] for found in itertools.islice(stream, count)]


def test_a_stream_gives_each_row_once_a_pass_and_never_ends(folder):
    path = jsonl(folder, *({"question": f"q{i}"} for i in range(20)))
    found = ids(stream_rows(path), 60)
    names = {f"rows-{i}" for i in range(1, 21)}
    assert [set(found[start : start + 20]) for start in (0, 20, 40)] == [names] * 3
    assert found[:20] != found[20:40]
    assert ids(stream_rows(path), 60) == found != ids(stream_rows(path, seed=1), 60)


def test_a_stream_shows_rows_as_loading_does(folder):
    path = jsonl(folder, ROWS[0])
    (streamed,) = itertools.islice(stream_rows(path, instruction="I."), 1)
    (loaded,) = load(path, instruction="I.")
    pictures = [found.pop("images")[0].getpixel((0, 0)) for found in (streamed, loaded)]
    assert pictures == [(255, 0, 0)] * 2
    assert streamed == loaded


def test_a_stream_stops_at_a_bad_row_or_tells_it_once(folder):
    path = jsonl(folder, *ROWS, {"image": "none.png", "question": "?"})
    with pytest.raises(DataError, match=r"rows\.jsonl:3: image: 'none\.png' does not exist"):
        ids(stream_rows(path), 3)
    told = []
    assert set(ids(stream_rows(path, on_bad_row="skip", on_skipped=told.append), 7)) == {"rows-1", "rows-2"}
    assert [[problem.row for problem in problems] for problems in told] == [[3]]


def test_what_a_stream_refuses_is_named_by_its_file(folder):
    jsonl(folder, *ROWS)
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: row: too long"):
        ids(stream_rows(str(folder), refuse=lambda found: "too long"), 1)


def test_rows_left_out_of_a_stream_are_named_twenty_times_and_then_counted(folder, capsys):
    bad = [{"image": f"none{i}.png", "question": "?"} for i in range(30)]
    section = FileData(path=jsonl(folder, ROWS[0], *bad), stream=True, on_bad_row="skip")
    ids(resolve_data(section).stream(None, "align", 0, lambda found: None), 3)
    said = capsys.readouterr().err
    assert said.count("does not exist") == 20
    assert said.count("more rows are left out") == said.count("30 rows left out in all") == 1


def test_a_row_can_not_steer_the_terminal_from_a_message(folder):
    for fields in ({"image": "\x1b[2J.png", "question": "?"}, {"\x1b[2J\x9b": 1}, {"question": {"a\x9b": 1}}):
        message = refused(jsonl(folder, fields))
        assert all(c.isprintable() or c == "\n" for c in message)
    with pytest.raises(DataError) as caught:
        detect({"\x1b[2J": 1})
    assert str(caught.value).isprintable()


def test_a_stream_of_nothing_usable_ends_with_an_error(folder):
    path = jsonl(folder, *ROWS)
    stream = stream_rows(path, on_bad_row="skip", refuse=lambda found: "too long")
    with pytest.raises(DataError, match="no rows that can be used"):
        ids(stream, 1)


def test_a_rows_columns_are_always_there():
    rows = dataset([row("a", "?", [])])
    assert rows[0] == {
        "id": "a",
        "source": "",
        "prompt": [{"role": "user", "content": "?"}],
        "images": [],
        "answers": [],
        "teacher_response": None,
        "student_response": None,
        "caption": None,
        "demonstration": None,
        "truth": None,
    }
