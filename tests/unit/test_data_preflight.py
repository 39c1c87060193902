"""What `data check` finds, in all five ways a row may be written, and what it writes when it mends a set."""

import csv
import io
import json
import os
import signal
import struct
import time
import zlib
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prism_cli.assembly.response import grammar_of
from prism_cli.data.fix import check_target, write_clean
from prism_cli.data.formats import parse
from prism_cli.data.load import load_rows
from prism_cli.data.overlap import NEAR, Identity, Match, duplicates, overlaps
from prism_cli.data.pictures import look
from prism_cli.data.preflight import check_row
from prism_cli.data.reading import Checks
from prism_cli.data.survey import check_source
from prism_cli.errors import DataError
from prism_cli.recipes.sections import ResponseSection
from prism_cli.rewards.accuracy import is_correct

GRAMMAR = grammar_of(ResponseSection())
GOOD = "<caption> a red square </caption> <think> one square </think> <answer> 1 </answer>"
TAGS = "write <caption>…</caption> <think>…</think> <answer>…</answer>"
CUT = "does not decode to its end (image file is truncated"


def drawing(seed, width=96, height=64):
    """A picture that no other seed gives; scaled up, so that it compresses like a photograph."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture, format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def header_only(width, height):
    """A PNG of 70 bytes whose header says that it is this large."""
    data = bytearray(encoded(Image.new("RGB", (8, 8))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.fixture
def folder(tmp_path):
    """Pictures 0.png, 1.png …, cut.jpg and bomb.png."""
    for seed in range(4):
        (tmp_path / f"{seed}.png").write_bytes(encoded(drawing(seed)))
    jpeg = encoded(drawing(9, 320, 240), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "bomb.png").write_bytes(header_only(10_000, 10_000))
    return tmp_path


def jsonl(folder, *rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def lines(path, **options):
    return [str(problem) for problem in check_source(path, grammar=GRAMMAR, verify=is_correct, **options).problems]


def kinds(path, **options):
    report = check_source(path, grammar=GRAMMAR, verify=is_correct, **options)
    return [(problem.row, problem.kind, problem.severity) for problem in report.problems]


def plain(picture="0.png", question="how many?", answer="1", **fields):
    return {"image": picture, "question": question, "answer": answer, **fields}


# The five shapes, a fault in each known row --------------------------------------------------------------------------


def test_plain_rows(folder):
    path = jsonl(
        folder,
        plain(),
        plain("1.png", question="<image><image> how many?"),
        plain("cut.jpg"),
        plain("none.png"),
        plain("bomb.png"),
        plain("2.png", answer=""),
        plain("3.png", answer="x" * 1024),
        plain("../0.png"),
    )
    with open(path, "a") as file:
        file.write('{"question": }\n')
    found = lines(path)
    assert found[1].startswith(f"rows.jsonl:3: image: {CUT}")
    assert found[1].endswith("→ fetch it again, or drop the row")
    assert [found[0], *found[2:]] == [
        "rows.jsonl:2: images: 2 <image> marks for 1 picture → give each mark its picture, or leave the marks out",
        "rows.jsonl:4: image: 'none.png' does not exist → paths begin at the data file's folder",
        "rows.jsonl:5: image: its header says 10000 × 10000 pixels, 89 million are the most "
        "→ scale it down, or drop the row",
        "rows.jsonl:6: answers: an accepted answer is empty → give it, or drop the row",
        "rows.jsonl:7: answers: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…' would not be scored as right by the "
        "verifier → write the final answer alone: a letter, a number, a short text",
        "rows.jsonl:8: image: '../0.png' leaves the data's folder → give bytes or a path inside the data's folder",
        "rows.jsonl:9: row: it is not JSON: Expecting value (column 14) → mend it, or drop it",
    ]


def test_conversational_rows(folder):
    def turns(question, answer="red"):
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    items = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "colour?"}]
    path = jsonl(
        folder,
        {"messages": turns("colour?", GOOD), "images": ["0.png"]},
        {"messages": turns(items, GOOD), "images": ["1.png"]},
        {"messages": turns("colour?"), "images": ["2.png"]},
        {"messages": turns("colour?", GOOD), "images": ["3.png", "none.png"]},
    )
    assert lines(path, needs="sft") == [
        "rows.jsonl:2: images: 2 <image> marks for 1 picture → give each mark its picture, or leave the marks out",
        f"rows.jsonl:3: demonstration: malformed: <caption> stands 0 times → {TAGS}",
        "rows.jsonl:4: image 2 of 2: 'none.png' does not exist → paths begin at the data file's folder",
    ]


def test_sharegpt_rows(folder):
    def said(question, *answer):
        turns = [{"from": "human", "value": question}, *({"from": "gpt", "value": text} for text in answer)]
        return {"conversations": turns}

    path = jsonl(
        folder,
        {**said("<image>colour?", GOOD), "images": ["0.png"]},
        {**said("<image><image>colour?", GOOD), "images": ["1.png"]},
        {**said("<image>colour?"), "images": ["2.png"]},
        {**said("<image>colour? <|im_end|>", GOOD), "images": ["3.png"]},
    )
    assert lines(path, needs="sft") == [
        "rows.jsonl:2: images: 2 <image> marks for 1 picture → give each mark its picture, or leave the marks out",
        "rows.jsonl:3: demonstration: there is none → give the text to learn, or name a teacher",
        "rows.jsonl:4: prompt: <|im_end|> stands in the text and would be read as the model's own mark "
        "→ take it out, or drop the row",
    ]


def test_verl_rows(folder):
    def row(picture, truth, response, question="<image>how many?"):
        return {
            "data_source": "x",
            "prompt": [{"role": "user", "content": question}],
            "images": [{"bytes": picture, "path": None}],
            "reward_model": {"ground_truth": truth, "style": "rule"},
            "teacher_response": response,
        }

    rows = [
        row(encoded(drawing(0)), "1", GOOD),
        row(encoded(drawing(1)), "", GOOD),
        row(encoded(drawing(2)), "1", GOOD.replace("</think>", "")),
        row(b"no picture", "1", GOOD),
        row(encoded(drawing(3)), "1", GOOD, "how many?<image><image>"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    assert lines(str(folder / "rows.parquet"), needs="rl") == [
        "rows.parquet:2: answers: an accepted answer is empty → give it, or drop the row",
        f"rows.parquet:3: teacher_response: malformed: </think> stands 0 times → {TAGS}",
        "rows.parquet:4: image: is no picture → give one of JPEG, PNG, WEBP, GIF, BMP, TIFF, or drop the row",
        "rows.parquet:5: images: 2 <image> marks for 1 picture → give each mark its picture, or leave the marks out",
    ]


def test_pairs(folder):
    def pair(picture, teacher=GOOD, student=GOOD):
        return {
            "prompt": f"how many in {picture}?",
            "image": picture,
            "teacher_response": teacher,
            "student_response": student,
        }

    path = jsonl(folder, pair("0.png"), pair("1.png", teacher="1"), pair("2.png", student="1"), pair("cut.jpg"))
    found = lines(path)
    assert found[:2] == [
        f"rows.jsonl:2: teacher_response: malformed: <caption> stands 0 times → {TAGS}",
        f"rows.jsonl:3: student_response: malformed: <caption> stands 0 times → {TAGS}",
    ]
    assert found[2].startswith(f"rows.jsonl:4: image: {CUT}")
    assert [severity for _, _, severity in kinds(path)] == ["error", "warning", "error"]


def test_csv_rows_are_named_by_their_line(folder):
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "question", "answer"])
        writer.writeheader()
        writer.writerows([plain(question="how\nmany?"), plain("none.png")])
    # The first row takes lines 2 and 3.
    assert [row for row, _, _ in kinds(str(folder / "rows.csv"))] == [4]


def test_each_file_of_a_folder_has_its_own_format(folder):
    jsonl(folder, plain(), name="a.jsonl")
    jsonl(folder, {"messages": [{"role": "user", "content": "colour?"}], "images": ["none.png"]}, name="b.jsonl")
    report = check_source(str(folder))
    assert report.formats == {"a.jsonl": "plain", "b.jsonl": "conversational"}
    jsonl(folder, plain(), {"prompt": "b?", "student_response": "x"}, plain("1.png"), name="a.jsonl")
    assert check_source(str(folder)).formats == {"a.jsonl": "plain, pairs", "b.jsonl": "conversational"}
    assert [(problem.file, problem.row) for problem in report.problems] == [("b.jsonl", 1)]


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_decoded_to_its_end(format):
    data = encoded(drawing(0, 320, 240), format)
    assert look({"bytes": data, "path": None}).fault is None
    assert look({"bytes": data[: len(data) * 3 // 4], "path": None}).fault.kind == "broken picture"


@pytest.mark.parametrize(
    ("width", "height", "kind"),
    [(9, 500, "tiny picture"), (10, 10, None), (10, 2001, "narrow picture"), (2000, 10, None)],
)
def test_the_smallest_side_and_the_longest_shape(width, height, kind):
    fault = look({"bytes": encoded(Image.new("RGB", (width, height))), "path": None}).fault
    assert (fault and fault.kind) == kind


@pytest.mark.parametrize("side", [9_460, 10_000, 60_000])
def test_a_giant_picture_is_refused_by_its_header(side):
    # Were it decoded, it would be found to be cut short.
    assert look({"bytes": header_only(side, side), "path": None}).fault.kind == "giant picture"


def test_no_other_program_is_run_on_a_picture():
    postscript = encoded(Image.new("RGB", (64, 64)), "EPS")
    assert look({"bytes": postscript, "path": None}).fault.kind == "broken picture"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA"])
def test_pictures_of_every_mode_are_looked_at(mode):
    base = drawing(0)
    picture = Image.new("I;16", base.size) if mode == "I;16" else base.convert(mode)
    found = look({"bytes": encoded(picture, "TIFF"), "path": None}, identify=True)
    assert (found.fault, len(found.pixels)) == (None, 16)


# Texts ----------------------------------------------------------------------------------------------------------------


def problems_of(needs=None, **fields):
    parsed = parse("plain", {"question": "how many?", **fields})
    found = check_row(parsed, [], file="x", row=1, needs=needs, grammar=GRAMMAR, verify=is_correct)
    return [(problem.kind, problem.severity) for problem in found]


@pytest.mark.parametrize(
    ("needs", "missing"),
    [(None, []), ("align", []), ("sft", ["no demonstration"]), ("rl", ["no answer"]), ("eval", ["no answer"])],
)
def test_a_row_must_have_what_its_stage_needs(needs, missing):
    assert [kind for kind, _ in problems_of(needs)] == missing


@pytest.mark.parametrize(
    ("needs", "severity"), [(None, "error"), ("rl", "error"), ("eval", "error"), ("sft", "warning")]
)
def test_an_answer_that_is_never_read_is_no_error(needs, severity):
    assert ("unscorable answer", severity) in problems_of(needs, answer="x" * 2000, response=GOOD)


@pytest.mark.parametrize(
    ("needs", "severity"),
    [(None, "warning"), ("align", "warning"), ("sft", "warning"), ("rl", "error"), ("eval", "error")],
)
def test_an_empty_answer_is_an_error_where_answers_are_read(needs, severity):
    assert ("empty answer", severity) in problems_of(needs, answer="", response=GOOD)


def test_teacher_responses_must_follow_the_grammar_and_demonstrations_should():
    assert problems_of(teacher_response="1", response="1") == [
        ("malformed teacher response", "error"),
        ("malformed demonstration", "warning"),
    ]
    assert problems_of(teacher_response=GOOD, response=GOOD) == []


@pytest.mark.parametrize("field", ["response", "teacher_response"])
def test_a_response_can_not_hold_the_models_own_marks(field):
    assert ("special token", "error") in problems_of(**{field: GOOD.replace("square", "<|image_pad|>")})


# Rows against rows ----------------------------------------------------------------------------------------------------


def test_ids_are_given_once(folder):
    path = jsonl(folder, plain(id="a"), plain("none.png", id="b"), plain("1.png", id="a"), plain("2.png", id="b"))
    # Row 2 can't be used, so row 4 is the only "b".
    assert kinds(path) == [(2, "missing picture", "error"), (3, "repeated id", "error")]


def test_a_repeated_row_is_found_though_its_picture_was_encoded_anew(folder):
    for name, picture, format, options in (
        ("half.jpg", drawing(0).resize((48, 32)), "JPEG", {"quality": 85}),
        ("same.jpg", drawing(0), "JPEG", {"quality": 50}),
        ("same.webp", drawing(0), "WEBP", {"quality": 60}),
    ):
        (folder / name).write_bytes(encoded(picture, format, **options))
    copies = [plain("half.jpg"), plain("same.jpg", question="How  MANY ?"), plain("same.webp", question="how many")]
    path = jsonl(folder, plain(), *copies, plain("1.png"), plain(question="which colour?"))
    assert kinds(path) == [(row, "duplicate", "warning") for row in (2, 3, 4)]


def test_pictures_that_only_look_alike_repeat_nothing_when_the_answers_differ(folder):
    (folder / "copy.jpg").write_bytes(encoded(drawing(0), "JPEG", quality=90))
    assert kinds(jsonl(folder, plain(answer="1"), plain("copy.jpg", answer="2"))) == []
    assert kinds(jsonl(folder, plain(answer="1"), plain(answer="2"))) == [(2, "same question", "warning")]


def test_a_row_that_teaches_something_else_is_no_duplicate(folder, tmp_path):
    other = GOOD.replace("one square", "a single square")
    (folder / "copy.jpg").write_bytes(encoded(drawing(0), "JPEG", quality=90))
    rows = [plain(response=GOOD), plain(response=other), plain("copy.jpg", response=other), plain(response=GOOD)]
    path = jsonl(folder, *rows, plain("copy.jpg", response=GOOD + " "))
    found = [(number, kind) for number, kind, _ in kinds(path)]
    assert found == [(2, "same question"), (3, "duplicate"), (4, "duplicate"), (5, "same question")]
    clean, kept = fixed(path, tmp_path / "out")
    assert (kept, [json.loads(line)["response"] for line in clean.read_text().splitlines()]) == (
        3,
        [GOOD, other, GOOD + " "],
    )


def test_rows_without_pictures_are_compared_by_their_words(folder):
    rows = [{"question": text, "answer": "4"} for text in ("2 + 2 a", "2  +\n2 A ?", "2 - 2 a", "2 + 2a")]
    assert kinds(jsonl(folder, *rows)) == [(2, "duplicate", "warning")]


def test_a_row_that_repeats_one_that_is_dropped_stays(folder):
    path = jsonl(folder, plain(teacher_response="1"), plain())
    assert kinds(path) == [(1, "malformed teacher response", "error")]


def test_what_will_be_measured_may_not_be_learnt(folder):
    (folder / "measured.jpg").write_bytes(encoded(drawing(0), "JPEG", quality=70))
    against = jsonl(folder, plain("measured.jpg"), plain("2.png", question="which colour?"), name="test.jsonl")
    path = jsonl(folder, plain(), plain("1.png"), plain("2.png"), {"question": "how many?", "answer": "1"})
    assert lines(path, against=against) == [
        "rows.jsonl:1: prompt: test.jsonl:1 of the evaluation set has the same question and pictures "
        "→ drop the row: it would be measured on what it learnt",
        "rows.jsonl:3: images: test.jsonl:2 of the evaluation set shows this very picture under another question "
        "→ drop the row if the picture gives the answer away",
    ]
    assert [severity for _, _, severity in kinds(path, against=against)] == ["error", "warning"]


def test_all_pictures_of_a_row_are_compared(folder):
    against = jsonl(folder, {"images": ["0.png", "1.png"], "question": "same?", "answer": "no"}, name="test.jsonl")
    path = jsonl(
        folder,
        {"images": ["0.png", "1.png"], "question": "same?", "answer": "no"},
        {"images": ["0.png", "2.png"], "question": "same?", "answer": "no"},
        {"images": ["2.png", "3.png"], "question": "same?", "answer": "no"},
    )
    assert kinds(path, against=against) == [(1, "overlap", "error"), (2, "shared picture", "warning")]


def test_a_drawing_of_the_same_template_is_no_copy_where_the_answers_differ():
    def asked(answers, pixels, shape=0):
        return Identity(b"q", answers, b"", (pixels,), (shape,))

    row, other = asked(b"7", b"row", 0b11), asked(b"8", b"other")
    assert list(overlaps([row], [other])) == [Match(0, 0, "alike")]
    assert list(overlaps([row], [other._replace(answers=b"7")])) == [Match(0, 0, "same")]
    assert list(overlaps([row], [other._replace(answers=None)])) == [Match(0, 0, "same")]
    assert list(overlaps([row], [other._replace(pixels=(b"row",))])) == [Match(0, 0, "same")]


@pytest.mark.parametrize("bad", [plain("cut.jpg"), plain("none.png"), {"answer": "1"}])
def test_an_evaluation_set_that_can_not_be_read_keeps_nothing_apart(folder, bad):
    against = jsonl(folder, plain("1.png"), bad, bad, name="test.jsonl")
    with pytest.raises(
        DataError, match=r"2 of 3 rows of .*test\.jsonl can't be compared with; the first: test\.jsonl:2: "
    ):
        check_source(jsonl(folder, plain()), against=against)
    (folder / "test.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows to compare with"):
        check_source(jsonl(folder, plain()), against=against)


def near(one, other):
    return all((a ^ b).bit_count() <= NEAR for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("pictures", [1, 2])
def test_pictures_that_look_alike_are_found_as_by_comparing_all_with_all(pictures):
    random = Random(pictures)
    kinds = [[random.getrandbits(256) & random.getrandbits(256) for _ in range(pictures)] for _ in range(12)]

    def noisy(shape):
        return shape ^ sum(1 << bit for bit in random.sample(range(256), random.choice((0, 4, 9, 10, 11))))

    shapes = [tuple(map(noisy, random.choice(kinds))) for _ in range(200)]
    rows = [Identity(b"q", b"a", b"r", (bytes([index]),), shape) for index, shape in enumerate(shapes)]
    first = [next((j for j in range(i) if near(shapes[i], shapes[j])), None) for i in range(200)]
    assert duplicates(rows) == [Match(i, j, "same") for i, j in enumerate(first) if j is not None]
    ones, others = rows[:100], rows[100:]
    first = [next((j for j, other in enumerate(others) if near(one.shapes, other.shapes)), None) for one in ones]
    assert list(overlaps(ones, others)) == [Match(i, j, "same") for i, j in enumerate(first) if j is not None]


def test_one_question_for_many_pictures_is_compared_in_seconds():
    random = Random(0)
    rows = [Identity(b"q", b"a", b"r", (index.to_bytes(4),), (random.getrandbits(256),)) for index in range(30_000)]
    begins = time.process_time()
    assert duplicates([*rows, rows[7]]) == [Match(30_000, 7, "same")]
    assert time.process_time() - begins < 15  # comparing all with all takes over a minute


def test_rows_longer_than_allowed_are_errors(folder):
    def count(prompts, sizes, responses):
        # A token a word and one for each 16 × 16 pixels.
        words = [sum(len(turn["content"].split()) for turn in prompt) for prompt in prompts]
        pixels = [sum(width * height for width, height in row) for row in sizes]
        learnt = [len((text or "").split()) for text in responses or [None] * len(prompts)]
        return [w + p // 256 + r for w, p, r in zip(words, pixels, learnt, strict=True)]

    path = jsonl(folder, plain(), plain("1.png", question="how many of them ?", response="three of them"))
    report = check_source(path, count_tokens=count, max_tokens=28)
    # 96 × 64 pixels are 24 tokens.
    assert report.lengths == [26, 29]
    assert [str(problem) for problem in report.problems] == [
        "rows.jsonl:2: prompt: 29 tokens with its pictures, 28 are allowed → shorten it, or drop the row"
    ]
    assert check_source(path, count_tokens=count, needs="sft").lengths == [26, 32]


def test_several_processes_find_what_one_finds(folder):
    pictures = ["0.png", "1.png", "cut.jpg", "none.png", "2.png"]
    path = jsonl(folder, *(plain(pictures[i % 5], question=f"how many? {i % 97}") for i in range(300)))
    alone = check_source(path, grammar=GRAMMAR, verify=is_correct)
    together = check_source(path, grammar=GRAMMAR, verify=is_correct, processes=2)
    assert alone.rows == 300
    assert alone.by_kind("error") == {"broken picture": 60, "missing picture": 60}
    assert together == alone


def die(answer, accepted, question):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_and_not_waited_for(folder):
    path = jsonl(folder, *(plain(question=f"how many? {i}") for i in range(200)))
    with pytest.raises(DataError, match="a process that checked rows was killed"):
        check_source(path, verify=die, processes=2)


def test_training_reads_the_rows_that_the_check_calls_usable(folder):
    said = {"messages": [{"role": "user", "content": "<image><image>colour?"}], "images": ["1.png"]}
    jsonl(folder, plain(id="a"), plain("cut.jpg"), plain("none.png"), {"image": "2.png"}, plain("3.png", id="a"))
    jsonl(folder, said, {**said, "images": ["1.png", "2.png"]}, name="more.jsonl")
    report = check_source(str(folder), grammar=GRAMMAR, verify=is_correct)
    loaded = load_rows(str(folder), on_bad_row="skip", checks=Checks(None, GRAMMAR, is_correct))
    assert len(loaded.rows) == report.rows - len(report.unusable) == 2
    assert [problem[:4] for problem in loaded.problems] == [problem[:4] for problem in report.problems]


# Mending --------------------------------------------------------------------------------------------------------------


def fixed(path, out):
    return write_clean(check_source(path, grammar=GRAMMAR, verify=is_correct), out)


def test_the_clean_set_passes_and_its_pictures_came_along(folder, tmp_path):
    (folder / "more").mkdir()
    (folder / "more/4.png").write_bytes(encoded(drawing(4)))
    rows = [
        plain("more/4.png", extra={"é": [1, None]}),
        plain("none.png"),
        plain(),
        plain(),
        plain("cut.jpg", answer=""),
    ]
    clean, kept = fixed(jsonl(folder, *rows), tmp_path / "out")
    assert (clean.name, kept) == ("clean.jsonl", 2)
    assert [json.loads(line) for line in clean.read_text().splitlines()] == [rows[0], rows[2]]
    assert (tmp_path / "out/more/4.png").read_bytes() == encoded(drawing(4))
    assert lines(str(clean)) == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "clean.jsonl", "more", "rejected.jsonl"]
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert rejected[0] == {"file": "rows.jsonl", "row": 2, "reasons": ["image: 'none.png' does not exist"]}
    assert rejected[1]["reasons"] == ["prompt: rows.jsonl:3 has the same question and pictures"]
    assert [(found["row"], len(found["reasons"])) for found in rejected] == [(2, 1), (4, 1), (5, 2)]


def test_a_parquet_file_keeps_its_schema(folder, tmp_path):
    schema = pa.schema(
        {
            "id": pa.int32(),
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "question": pa.large_string(),
            "answer": pa.string(),
        },
        metadata={"huggingface": "{}"},
    )
    rows = [
        {"id": i, "image": {"bytes": data, "path": None}, "question": "?!", "answer": "1"}
        for i, data in enumerate((encoded(drawing(0)), b"cut short", encoded(drawing(1), "JPEG")))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "rows.parquet")
    clean, kept = fixed(str(folder / "rows.parquet"), tmp_path / "out")
    table = pq.read_table(clean)
    assert (clean.name, kept) == ("clean.parquet", 2)
    assert table.to_pylist() == [rows[0], rows[2]]
    assert table.schema.equals(schema, check_metadata=True)
    assert lines(str(clean)) == []


def test_a_csv_file_stays_one(folder, tmp_path):
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "question", "answer", "note"])
        writer.writeheader()
        writer.writerows([{**plain(question='a "b",\nc'), "note": ""}, plain("none.png")])
    clean, kept = fixed(str(folder / "rows.csv"), tmp_path / "out")
    with open(clean, newline="") as file:
        assert list(csv.DictReader(file)) == [{**plain(question='a "b",\nc'), "note": ""}]
    assert (clean.name, kept) == ("clean.csv", 1)
    assert lines(str(clean)) == []


def test_nothing_is_written_over(folder, tmp_path):
    (tmp_path / "out").mkdir()
    check_target(jsonl(folder, plain()), tmp_path / "out")
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        check_target(str(folder / "rows.jsonl"), tmp_path / "out")


def test_nothing_is_written_when_no_row_is_usable(folder, tmp_path):
    with pytest.raises(DataError, match="no row of"):
        fixed(jsonl(folder, plain("none.png")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_row_whose_picture_can_not_come_along_is_left_out(folder, tmp_path):
    for name in ("rejected.jsonl", "clean.jsonl"):
        (folder / name).write_bytes(encoded(drawing(7)))
    names = [str(folder / "1.png"), f"../{folder.name}/1.png", "rejected.jsonl", "clean.jsonl"]
    path = jsonl(folder, plain(), *(plain(name, question=f"what {name} ?") for name in names))
    clean, kept = fixed(path, tmp_path / "out")
    assert (kept, [json.loads(line) for line in clean.read_text().splitlines()]) == (1, [plain()])
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [(found["row"], found["reasons"][0].rpartition(": ")[0] or found["reasons"][0]) for found in rejected] == [
        (2, f"image: {names[0]!r} would not lie in the new folder"),
        (3, f"image: {names[1]!r} would not lie in the new folder"),
        (4, "image"),
        (5, "image"),
    ]
    assert (folder / "rejected.jsonl").read_bytes() == encoded(drawing(7))
    assert check_source(str(tmp_path / "out")).problems == []  # the folder is a set, too


def test_a_fix_that_fails_leaves_no_folder(folder, tmp_path):
    path = jsonl(folder, plain(str(folder / "1.png")))
    with pytest.raises(DataError, match="no row of"):
        fixed(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_a_set_that_changed_since_the_check_is_not_fixed(folder, tmp_path):
    report = check_source(jsonl(folder, plain(), plain("none.png")))
    jsonl(folder, plain("none.png"), plain())
    with pytest.raises(DataError, match="changed since it was checked"):
        write_clean(report, tmp_path / "out")


def test_files_that_can_not_be_one_are_refused_before_the_work(folder, tmp_path):
    for name, value in (("a", {"question": "?"}), ("b", {"question": {"text": "?"}})):
        pq.write_table(pa.Table.from_pylist([value]), folder / f"{name}.parquet")
    with pytest.raises(DataError, match="can't be one file's"):
        check_target(str(folder), tmp_path / "out")
    (folder / "rows.csv").write_bytes(b"caf\xe9\n1\n")
    with pytest.raises(DataError, match="can't be one file's"):
        check_target(str(folder / "rows.csv"), tmp_path / "out")


def test_a_folder_that_can_not_be_made_is_refused_before_the_work(folder, tmp_path):
    path = jsonl(folder, plain())
    with pytest.raises(DataError, match="is no folder to write to"):
        check_target(path, folder / "0.png" / "out")


def test_lists_of_csv_stay_lists(folder, tmp_path):
    with open(folder / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["question", "images", "answers"], ["?!", '["0.png"]', '["1", "é"]']])
    clean, _ = fixed(str(folder / "rows.csv"), tmp_path / "out")
    assert clean.read_text() == (folder / "rows.csv").read_text()
