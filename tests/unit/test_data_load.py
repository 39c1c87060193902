import csv
import io
import json
import struct
import zlib

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from prism_cli.data.lengths import refuse_mixed
from prism_cli.data.load import load_rows
from prism_cli.data.rows import dataset, row, with_instruction
from prism_cli.errors import DataError


def png(colour):
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), colour).save(buffer, format="PNG")
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


def refused(path):
    with pytest.raises(DataError) as caught:
        load_rows(path)
    return str(caught.value)


# Forms ----------------------------------------------------------------------------------------------------------------


def test_a_question_with_an_answer(folder):
    (only,) = load_rows(jsonl(folder, {"image": "red.png", "question": "<image>colour?", "answer": "red"}))
    assert only["prompt"] == [{"role": "user", "content": "colour?"}]
    assert (only["id"], only["answers"], only["demonstration"]) == ("rows-0", ["red"], None)
    assert only["images"][0].getpixel((0, 0)) == (255, 0, 0)


FORMS = {
    "question": {"question": "colour?", "response": "It is red."},
    "prompt": {"prompt": "colour?", "completion": "It is red."},
    "turns": {
        "prompt": [{"role": "user", "content": "colour?"}],
        "completion": [{"role": "assistant", "content": "It is red."}],
    },
    "messages": {"messages": [{"role": "user", "content": "colour?"}, {"role": "assistant", "content": "It is red."}]},
    "items": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "colour?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "It is red."}]},
        ]
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_row(folder, form):
    (only,) = load_rows(jsonl(folder, {"image": "red.png", **form}))
    assert only["prompt"] == [{"role": "user", "content": "colour?"}]
    assert only["demonstration"] == "It is red."
    assert len(only["images"]) == 1


def test_a_rows_own_system_message_stays_and_is_not_doubled(folder):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "colour?"}]
    rows = load_rows(jsonl(folder, {"prompt": turns}, {"prompt": turns[1:]}))
    systems = [
        [m["content"] for m in prompt if m["role"] == "system"] for prompt in with_instruction(rows, "I.")["prompt"]
    ]
    assert systems == [["Be brief."], ["I."]]


def test_several_pictures_and_answers(folder):
    fields = {"images": ["red.png", "blue.png"], "question": "<image><image> colours?", "answers": ["red", 2]}
    (only,) = load_rows(jsonl(folder, fields | {"answers": ["red", "2"], "id": "mine"}))
    assert (only["id"], only["answers"], len(only["images"])) == ("mine", ["red", "2"], 2)
    assert only["images"][1].getpixel((0, 0)) == (0, 0, 255)


def test_a_row_without_a_picture_is_a_row(folder):
    (only,) = load_rows(jsonl(folder, {"question": "2 + 2?", "answer": "4"}))
    assert only["images"] == []


def test_numbers_as_answers_are_text(folder):
    (only,) = load_rows(jsonl(folder, {"question": "2 + 2?", "answer": 4}))
    assert only["answers"] == ["4"]


# Formats --------------------------------------------------------------------------------------------------------------

ROWS = [
    {"image": "red.png", "question": "colour?", "answer": "red"},
    {"image": "blue.png", "question": "?", "answer": "blue"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_is_read_alike(folder, suffix):
    path = folder / f"rows.{suffix}"
    if suffix == "jsonl":
        jsonl(folder, *ROWS)
    elif suffix == "json":
        path.write_text(json.dumps(ROWS))
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        Dataset.from_list(ROWS).to_parquet(path)
    rows = load_rows(str(path))
    assert rows["id"] == ["rows-0", "rows-1"]
    assert rows["answers"] == [["red"], ["blue"]]
    assert [images[0].getpixel((0, 0)) for images in rows["images"]] == [(255, 0, 0), (0, 0, 255)]


def test_pictures_inside_a_parquet_file_keep_their_bytes(folder):
    features = Features({"image": Image(), "question": Value("string")})
    data = Dataset.from_dict({"image": [{"bytes": png("red"), "path": None}], "question": ["?"]}, features=features)
    data.to_parquet(folder / "rows.parquet")
    rows = load_rows(str(folder / "rows.parquet"))
    raw = rows.with_format("arrow")[0]["images"].to_pylist()
    assert raw[0][0]["bytes"] == png("red")


def test_the_limit_takes_the_first_rows(folder):
    assert load_rows(jsonl(folder, *ROWS), limit=1)["answers"] == [["red"]]


# Bad rows -------------------------------------------------------------------------------------------------------------


def test_every_bad_row_is_named_at_once(folder):
    path = jsonl(folder, ROWS[0], {"image": "none.png", "question": "?"}, ROWS[1], {"image": "red.png", "answer": "x"})
    message = refused(path)
    assert "row 1: image 'none.png' does not exist" in message
    assert "row 3: no question" in message
    assert "row 0" not in message
    assert "row 2" not in message


def test_a_flood_of_bad_rows_is_cut(folder):
    message = refused(jsonl(folder, *[{"image": "red.png", "question": ""}] * 30))
    assert message.count("no question") == 20
    assert "and 10 more" in message


@pytest.mark.parametrize("name", ["../secret.png", "red/../../secret.png"])
def test_a_picture_outside_the_folder_is_refused(folder, name):
    assert "leaves the data's folder" in refused(jsonl(folder, {"image": name, "question": "?"}))


def test_an_absolute_path_is_refused(folder):
    path = jsonl(folder, {"image": str(folder.parent / "secret.png"), "question": "?"})
    assert "leaves the data's folder" in refused(path)


def test_a_link_that_leads_outside_is_refused(folder):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    assert "leaves the data's folder" in refused(jsonl(folder, {"image": "link.png", "question": "?"}))


def test_a_link_inside_is_followed(folder):
    (folder / "link.png").symlink_to(folder / "red.png")
    assert len(load_rows(jsonl(folder, {"image": "link.png", "question": "?"}))) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd"])
def test_no_url_is_fetched(folder, url):
    assert repr(url) in refused(jsonl(folder, {"image": url, "question": "?"}))


def test_a_file_that_is_no_picture_is_refused(folder):
    (folder / "notes.png").write_text("not a picture")
    assert "row 0" in refused(jsonl(folder, {"image": "notes.png", "question": "?"}))


@pytest.mark.parametrize(("marks", "images"), [(2, 1), (1, 2), (1, 0)])
def test_marks_and_pictures_must_agree(folder, marks, images):
    fields = {"question": "<image>" * marks + "?", "images": ["red.png"] * images}
    assert f"{marks} <image> marks for {images} images" in refused(jsonl(folder, fields))


def test_a_conversation_of_several_turns_is_refused(folder):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    assert "one user turn is expected" in refused(jsonl(folder, {"messages": turns}))


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "colour?"}, {"from": "gpt", "value": "red"}],
        [{"role": "user", "content": None}, {"role": "assistant", "content": "red"}],
        [{"role": "user", "content": "colour?"}, {"role": "assistant", "content": None}],
        [{"role": "user"}],
    ],
    ids=["from and value", "no question", "no answer", "no content"],
)
def test_messages_that_are_no_turns_are_refused_with_their_row(folder, turns):
    message = refused(jsonl(folder, {"messages": turns}))
    assert "row 0: its messages are no turns of `role` and `content`, or a text is none" in message


@pytest.mark.parametrize("kind", ["image", "image_url"])
@pytest.mark.parametrize("key", ["messages", "prompt"])
def test_a_picture_that_stands_in_a_message_alone_is_not_dropped_in_silence(folder, key, kind):
    turn = {"role": "user", "content": [{"type": kind, kind: "red.png"}, {"type": "text", "text": "colour?"}]}
    assert "row 0: 1 image items in its messages for 0 in `images`" in refused(jsonl(folder, {key: [turn]}))


def test_a_picture_too_large_to_open_is_refused_with_its_row(folder):
    data = bytearray(png("red"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # the header's width and height, under a checksum that agrees
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (folder / "bomb.png").write_bytes(data)
    assert "row 1: image 'bomb.png' is no picture" in refused(jsonl(folder, ROWS[0], {**ROWS[1], "image": "bomb.png"}))


def test_rows_with_and_without_a_picture_are_not_mixed_in_rollouts(folder):
    with pytest.raises(DataError, match="1 of 3 rows have no picture, the first is rows-1"):
        refuse_mixed(load_rows(jsonl(folder, ROWS[0], {"question": "2 + 2?"}, ROWS[1])))
    refuse_mixed(load_rows(jsonl(folder, *ROWS)))
    refuse_mixed(load_rows(jsonl(folder, {"question": "2 + 2?"}, {"question": "2 + 3?"})))


def test_two_rows_of_one_id_are_refused(folder):
    message = refused(jsonl(folder, *({"id": "same", "question": question} for question in "ab")))
    assert "same" in message


# Bad files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_is_refused(folder, content):
    (folder / "rows.jsonl").write_text(content)
    assert "rows.jsonl" in refused(str(folder / "rows.jsonl"))


def test_broken_json_is_refused_by_name(folder):
    (folder / "rows.jsonl").write_text('{"question": "a"}\n{"question": \n')
    assert "rows.jsonl" in refused(str(folder / "rows.jsonl"))


@pytest.mark.parametrize("name", ["missing.jsonl", "rows.xml", "."])
def test_what_is_no_data_file_is_refused(folder, name):
    (folder / "rows.xml").write_text("<a/>")
    with pytest.raises(DataError) as caught:
        load_rows(str(folder / name))
    assert caught.value.hint


def test_a_rows_columns_are_always_there():
    rows = dataset([row("a", "?", [])])
    assert rows[0] == {
        "id": "a",
        "prompt": [{"role": "user", "content": "?"}],
        "images": [],
        "answers": [],
        "teacher_response": None,
        "demonstration": None,
        "truth": None,
    }
