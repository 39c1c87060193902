"""`prism data check` and `prism data show` as a user meets them: output, files, exit codes."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor
from typer.testing import CliRunner

from prism_cli.assembly.response import grammar_of
from prism_cli.cli.app import app
from prism_cli.models import Policy, set_pixel_budget
from prism_cli.recipes.sections import ImageSection, ResponseSection
from prism_cli.responses import Grammar, Part
from prism_cli.stages.data_show import render_prompt
from tests.tiny import tiny_policy

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m'


def prism(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def picture(folder, name, seed=0, size=(96, 64)):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(folder / name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two pictures; rows.jsonl has a good row, a bad one and a repeated one."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path, "a.png", 1)
    picture(tmp_path, "b.png", 2)
    good = {"image": "a.png", "question": "what is at b2 ?", "answer": "red"}
    write(tmp_path / "rows.jsonl", good, {**good, "image": "none.png"}, good, {**good, "image": "b.png"})
    return tmp_path


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def processor_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("processor")
    tiny_policy()[1].save_pretrained(path)
    return path


# Check ----------------------------------------------------------------------------------------------------------------


def test_problems_stand_a_line_each_above_the_summary(folder):
    done = prism("check", "rows.jsonl")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[:2] == [
        "rows.jsonl:2: image: 'none.png' does not exist → paths begin at the data file's folder",
        "rows.jsonl:3: prompt: rows.jsonl:1 has the same question and pictures → drop one of them  (warning)",
    ]
    for said in ("plain", "1 × missing picture", "1 × duplicate", "3: 3 PNG", "all 96 × 64"):
        assert said in done.stdout


def test_a_set_without_errors_exits_0(folder):
    write(folder / "good.jsonl", {"image": "a.png", "question": "what is at b2 ?", "answer": "red"})
    assert prism("check", "good.jsonl").exit_code == 0


def test_json_is_all_there_is_on_stdout(folder):
    done = prism("check", "rows.jsonl", "--json", "--fix", "clean")
    report = json.loads(done.stdout)
    assert (report["rows"], report["usable"], done.exit_code) == (4, 3, 1)
    assert (report["errors"], report["warnings"]) == ({"missing picture": 1}, {"duplicate": 1})
    assert report["pictures"]["sizes"] == [{"width": 96, "height": 64, "count": 3}]
    assert report["problems"][0] == {
        "file": "rows.jsonl",
        "row": 2,
        "field": "image",
        "what": "'none.png' does not exist",
        "cure": "paths begin at the data file's folder",
        "severity": "error",
        "kind": "missing picture",
    }
    assert "kept 2 rows" in done.stderr


def test_what_fix_writes_passes_the_check(folder):
    assert prism("check", "rows.jsonl", "--fix", "new/clean").exit_code == 1
    again = prism("check", "new/clean/clean.jsonl", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["problems"] == []
    assert sorted(path.name for path in Path("new/clean").iterdir()) == [
        *("a.png", "b.png", "clean.jsonl", "rejected.jsonl")
    ]


def test_fix_refuses_a_folder_in_use_before_the_work(folder):
    Path("clean").mkdir()
    Path("clean/mine").write_text("")
    done = prism("check", "rows.jsonl", "--fix", "clean")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "clean is there already" in done.stderr


def test_only_200_problems_are_printed_and_all_are_in_the_json(folder):
    write(folder / "many.jsonl", *({"image": "none.png", "question": f"what {i} ?"} for i in range(230)))
    printed = prism("check", "many.jsonl").stdout
    assert printed.count("does not exist") == 200
    assert "… and 30 more" in printed
    assert len(json.loads(prism("check", "many.jsonl", "--json").stdout)["problems"]) == 230


def test_a_row_can_not_steer_the_terminal(folder):
    write(folder / "rows.jsonl", {"question": "what ?", "image": "\x1b[2J\x9b2J.png"})
    done = prism("check", "rows.jsonl")
    assert not re.search(r"[\x1b\x9b]", done.stdout)


def test_tokens_are_the_models_own(folder, processor_folder):
    done = prism("check", "rows.jsonl", "--tokens", processor_folder, "--max-tokens", 90, "--json", "--limit", 1)
    report = json.loads(done.stdout)
    processor = AutoProcessor.from_pretrained(processor_folder)
    image, response = ImageSection(), ResponseSection()
    set_pixel_budget(processor, image.min_pixels, image.max_pixels)
    items = [{"type": "image"}, {"type": "text", "text": "what is at b2 ?"}]
    turns = [{"role": "system", "content": grammar_of(response).instruction()}, {"role": "user", "content": items}]
    chat = processor.apply_chat_template(turns, add_generation_prompt=True)
    read = processor(text=chat, images=[Image.open("a.png")])["input_ids"][0]
    assert report["tokens"] == {
        **dict.fromkeys(("median", "p95", "max"), len(read)),
        "histogram": [[*[len(read)] * 2, 1]],
    }
    assert [(p["kind"], p["what"]) for p in report["problems"]] == [
        ("too long", f"{len(read)} tokens with its pictures, 90 are allowed")
    ]


def test_a_model_that_reads_no_pictures_counts_no_tokens(folder):
    tokenizer = tiny_policy()[1].tokenizer
    tokenizer._processor_class = None  # else it asks for the processor that another test saved
    tokenizer.save_pretrained("words")
    (folder / "words/config.json").write_text('{"model_type": "qwen2"}')
    done = prism("check", "rows.jsonl", "--tokens", folder / "words")
    assert done.exit_code == 2
    assert "reads no pictures" in done.stderr


def test_a_page_is_no_folder(folder):
    done = prism("show", "rows.jsonl", "--output", ".")
    assert (done.exit_code, "is a folder" in done.stderr) == (2, True)


def test_marks_of_the_terminal_in_a_name_are_text(folder):
    write(folder / "[red]x.jsonl", {"question": "what is é ?", "image": "é.png"})
    assert "prism data check [red]x.jsonl" in prism("check", "[red]x.jsonl").stdout
    done = prism("check", "[red]x.jsonl", "--json")
    assert done.stdout.isascii()
    assert "é.png" in json.loads(done.stdout)["problems"][0]["what"]


def test_a_length_without_a_model_is_wrong_usage(folder):
    done = prism("check", "rows.jsonl", "--max-tokens", 90)
    assert (done.exit_code, "give --tokens MODEL" in done.stderr) == (2, True)


def test_an_evaluation_set_is_kept_apart(folder):
    Image.open("a.png").save("test.jpg", quality=80)
    write(folder / "test.jsonl", {"image": "test.jpg", "question": "What is at b2?", "answer": "red"})
    done = prism("check", "rows.jsonl", "--against", "test.jsonl", "--json")
    found = [(p["row"], p["kind"]) for p in json.loads(done.stdout)["problems"]]
    assert found == [(1, "overlap"), (2, "missing picture"), (3, "overlap")]


def test_what_rows_are_for_decides_what_they_need(folder):
    write(folder / "rows.jsonl", {"image": "a.png", "question": "what ?"})
    assert [prism("check", "rows.jsonl", "--for", stage).exit_code for stage in ("align", "sft", "rl")] == [0, 1, 1]


def test_a_runs_own_grammar_decides_what_is_malformed(folder):
    model, processor = tiny_policy()
    run = folder / "runs/x/sft"
    grammar = Grammar({"reasoning": Part(("steps", "answer"), 1.0)})
    Policy(model, processor, grammar, None).save(run / "model")
    (run / "run.json").write_text(
        json.dumps({"stage": "sft", "status": "finished", "finished": "2026-01-01", "recipe": {}})
    )
    write(
        folder / "rows.jsonl",
        {"image": "a.png", "question": "what ?", "teacher_response": "<steps> x </steps> <answer> red </answer>"},
    )
    assert prism("check", "rows.jsonl").exit_code == 1
    assert prism("check", "rows.jsonl", "--from", run).exit_code == 0


def test_ctrl_c_ends_it_at_once_and_leaves_no_process(folder):
    picture(folder, "large.png", size=(1500, 1500))
    write(folder / "rows.jsonl", *({"image": "large.png", "question": f"what {i} ?"} for i in range(4000)))
    command = [sys.executable, "-m", "prism_cli", "data", "check", "rows.jsonl", "--fix", "clean"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        waited = time.monotonic() + 60
        while not _children(process.pid) and time.monotonic() < waited:
            time.sleep(0.1)
        time.sleep(1)
        assert process.poll() is None, "it ended before it could be interrupted"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    waited = time.monotonic() + 10
    while _group(process.pid) and time.monotonic() < waited:
        time.sleep(0.1)  # Python's own tracker of shared resources ends once it sees that the others have
    assert _group(process.pid) == []
    assert not Path("clean").exists()


def _children(pid):
    return [p for p in _group(pid) if p != pid]


def _group(group):
    """Processes of a group, by /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


# Show -----------------------------------------------------------------------------------------------------------------


def test_the_page_shows_rows_and_their_faults(folder):
    done = prism("show", "rows.jsonl", "-n", 2, "--output", "pages/rows.html")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == ["format plain", "page   pages/rows.html"]
    page = Path("pages/rows.html").read_text()
    assert page.count("<article") == 2
    assert page.count("data:image/png;base64,") == 1
    for said in ("what is at b2 ?", "96 × 64 PNG", "none.png&#39; does not exist", "rows.jsonl:1"):
        assert said in page


def test_what_stands_in_rows_can_not_run(folder):
    row = {"question": HOSTILE, "answer": HOSTILE, "caption": HOSTILE, "id": HOSTILE, "image": "a.png"}
    write(folder / "rows.jsonl", row, {**row, "image": HOSTILE, "id": "2"})
    assert prism("show", "rows.jsonl").exit_code == 0
    page = Path("data_show.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert "default-src 'none'; img-src data:" in page
    assert not re.search(r"https?://", page)


def test_a_picture_is_encoded_anew(folder):
    with open("a.png", "ab") as file:
        file.write(b"<script>alert(1)</script>")
    assert prism("show", "rows.jsonl", "-n", 1).exit_code == 0
    (inline,) = re.findall(r"data:image/png;base64,([^\"]+)", Path("data_show.html").read_text())
    assert base64.b64decode(inline).startswith(b"\x89PNG")
    assert b"script" not in base64.b64decode(inline)


def test_prompts_are_shown_as_the_model_reads_them(folder, processor_folder):
    assert prism("show", "rows.jsonl", "-n", 1, "--tokens", processor_folder).exit_code == 0
    page = Path("data_show.html").read_text()
    assert re.search(r"&lt;\|image_pad\|&gt; × \d+", page)
    assert "&lt;|im_start|&gt;system" in page
    assert "Answer in exactly this form" in page


def test_the_shown_number_of_image_tokens_is_the_processors():
    processor = tiny_policy()[1]
    pictures = [Image.new("RGB", (96, 64)), Image.new("RGB", (48, 48))]
    turns = [
        {"role": "user", "content": "at a1 ?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "at b2 ?"},
    ]
    shown = render_prompt(turns, [picture.size for picture in pictures], processor)
    written = re.sub(r"<\|image_pad\|> × (\d+)", lambda mark: "<|image_pad|>" * int(mark[1]), shown)
    items = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "at a1 ?"}]
    chat = [{"role": "user", "content": items}, *turns[1:]]
    read = processor(text=processor.apply_chat_template(chat, add_generation_prompt=True), images=pictures)
    assert processor.tokenizer(written, add_special_tokens=False)["input_ids"] == read["input_ids"][0]
    assert shown.index("image_pad") < shown.index("a1") < shown.index("b2")
