"""The files `prism collect` writes, read back by those who learn from them."""

import json

import pytest
from PIL import Image

from prism_cli.data.collected import DemonstrationsFile, PairsFile
from prism_cli.data.load import load_rows
from prism_cli.data.rows import png

RED, BLUE = (png(Image.new("RGB", (12, 12), colour)) for colour in ("red", "blue"))


def row(*pictures, prompt=({"role": "user", "content": "what?"},), answers=("one",)):
    return {"prompt": list(prompt), "images": list(pictures), "answers": list(answers)}


def inside(data):
    return {"bytes": data, "path": None}


def test_demonstrations_read_back_as_they_were_written_pictures_of_local_files_inside(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    path = tmp_path / "out/demonstrations.parquet"
    with DemonstrationsFile(path) as file:
        file.add("a", row({"bytes": None, "path": str(tmp_path / "red.png")}, inside(BLUE)), "first")
        file.add("b", row(answers=()), "second")
    (tmp_path / "red.png").unlink()
    rows = load_rows(str(path)).rows
    assert rows["id"] == ["a", "b"]
    assert rows["demonstration"] == rows["teacher_response"] == ["first", "second"]
    assert rows["answers"] == [["one"], []]
    assert [picture.getpixel((0, 0)) for picture in rows[0]["images"]] == [(255, 0, 0), (0, 0, 255)]
    assert file.count == 2


def test_more_rows_than_one_group_are_all_there_in_order(tmp_path):
    path = tmp_path / "demonstrations.parquet"
    with DemonstrationsFile(path) as file:
        for number in range(150):
            file.add(str(number), row(inside(RED)), f"answer {number}")
    assert load_rows(str(path)).rows["id"] == [str(number) for number in range(150)]


@pytest.mark.parametrize(("kind", "name"), [(DemonstrationsFile, "x.parquet"), (PairsFile, "x.jsonl")])
def test_a_file_that_is_not_finished_leaves_the_old_one_alone(tmp_path, kind, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), kind(tmp_path / name):
        raise KeyboardInterrupt
    assert (tmp_path / name).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_pairs_name_their_pictures_as_files_each_written_once(tmp_path):
    path = tmp_path / "pairs.jsonl"
    teacher, student = {"caption": "<caption>a</caption>", "cot": "<answer>b</answer>"}, {"caption": "c", "cot": "d"}
    with PairsFile(path) as file:
        file.add("a", row(inside(RED)), teacher, student)
        file.add("b", row(inside(RED), inside(BLUE)), teacher, student)
        file.add("c", row(), {"response": "x"}, {"response": "y"})
    one, two, none = (json.loads(line) for line in path.read_text().splitlines())
    assert one["prompt"] == "what?"
    assert two["images"][0] == one["image"]
    assert "image" not in none
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert (tmp_path / one["image"]).read_bytes() == RED
    rows = load_rows(str(path)).rows
    assert rows["teacher_response"] == ["<caption>a</caption>\n<answer>b</answer>"] * 2 + ["x"]
    assert rows["student_response"] == ["c\nd", "c\nd", "y"]
    assert [len(pictures) for pictures in rows["images"]] == [1, 2, 0]


def test_a_conversation_keeps_its_turns(tmp_path):
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "why?"},
    ]
    with PairsFile(tmp_path / "pairs.jsonl") as file:
        file.add("a", row(prompt=turns), {"response": "x"}, {"response": "y"})
    assert load_rows(str(tmp_path / "pairs.jsonl")).rows[0]["prompt"] == turns
