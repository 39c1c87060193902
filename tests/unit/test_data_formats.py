import json
from pathlib import Path

import pytest

from prism_cli.data.formats import FORMATS, detect, parse
from prism_cli.errors import DataError

FULL = "<caption>a</caption>\n<think>b</think><answer>c</answer>"
USER, ASSISTANT = {"role": "user", "content": "colour?"}, {"role": "assistant", "content": "It is red."}

# One row as each kind of set writes it; all say: a picture, "colour?", "It is red.".
DEMONSTRATIONS = {
    "messages": ("conversational", {"messages": [USER, ASSISTANT], "images": ["a.png"]}),
    "prompt and completion": ("conversational", {"prompt": [USER], "completion": [ASSISTANT], "images": ["a.png"]}),
    "plain prompt": ("conversational", {"prompt": "colour?", "completion": "It is red.", "image": "a.png"}),
    "items": (
        "conversational",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "colour?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "It is red."}]},
            ],
            "images": ["a.png"],
        },
    ),
    "sharegpt": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "<image>colour?"},
                {"from": "gpt", "value": "It is red."},
            ],
            "images": ["a.png"],
        },
    ),
    "sharegpt under messages": (
        "sharegpt",
        {
            "messages": [{"from": "human", "value": "<image>\ncolour?"}, {"from": "gpt", "value": "It is red."}],
            "images": ["a.png"],
        },
    ),
    "LLaMA-Factory in OpenAI's keys": (
        "conversational",
        {"messages": [{"role": "user", "content": "<image>colour?"}, ASSISTANT], "images": ["a.png"]},
    ),
    "question": ("plain", {"question": "colour?", "response": "It is red.", "image": "a.png"}),
    "image folder": ("plain", {"question": "colour?", "response": "It is red.", "file_name": "a.png"}),
}


@pytest.mark.parametrize(("format", "fields"), DEMONSTRATIONS.values(), ids=DEMONSTRATIONS)
def test_every_form_says_the_same(format, fields):
    assert detect(fields) == format
    row = parse(format, fields)
    assert row.prompt == [USER]
    assert row.demonstration == "It is red."
    assert row.images == ["a.png"]


def test_a_verl_row_as_it_is_published():
    fields = {
        "data_source": "mmr1",
        "prompt": [{"role": "user", "content": "<image>How many?"}],
        "images": [{"bytes": b"png", "path": None}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 7, "split": "train"},
        "teacher_response": None,
        "teacher_caption": "<caption>a</caption>",
        "teacher_cot": "<think>b</think><answer>c</answer>",
    }
    assert detect(fields) == "verl"
    row = parse("verl", fields)
    assert row.prompt == [{"role": "user", "content": "How many?"}]
    assert (row.id, row.answers, row.teacher_response, row.demonstration) == (None, ["3"], FULL, None)
    assert row.images == [{"bytes": b"png", "path": None}]
    assert row.marks == 1


def test_several_ground_truths_are_all_accepted():
    fields = {"prompt": [USER], "reward_model": {"ground_truth": ["3", "three"]}}
    assert parse("verl", fields).answers == ["3", "three"]


def test_a_ground_truth_that_looks_like_a_list_is_one_answer():
    fields = {"prompt": [USER], "reward_model": {"ground_truth": "[1, 2]"}}
    assert parse("verl", fields).answers == ["[1, 2]"]
    assert parse("verl", {**fields, "reward_model": json.dumps(fields["reward_model"])}).answers == ["[1, 2]"]


@pytest.mark.parametrize("text", ["3", "{", "[" * 100_000, '{"ground_truth": "\\ud800"}'])
def test_a_reward_model_that_can_not_be_read_is_told(text):
    with pytest.raises(DataError, match=r"^reward_model: "):
        parse("verl", {"prompt": [USER], "reward_model": text})


def test_a_pair_as_it_is_published():
    fields = {
        "prompt": "How many?",
        "image": "a.png",
        "teacher_caption": "<caption>a</caption>",
        "teacher_cot": "<think>b</think><answer>c</answer>",
        "student_caption": "<caption>x</caption>",
        "student_cot": "<think>y</think><answer>z</answer>",
    }
    assert detect(fields) == "pairs"
    row = parse("pairs", fields)
    assert row.prompt == [{"role": "user", "content": "How many?"}]
    assert (row.teacher_response, row.student_response) == (
        FULL,
        "<caption>x</caption>\n<think>y</think><answer>z</answer>",
    )


def test_a_pair_of_whole_responses():
    fields = {"prompt": "How many?", "teacher_response": "t", "student_response": "s"}
    assert detect(fields) == "pairs"
    assert parse("pairs", fields)[5:7] == ("t", "s")


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"answer": "red"}, ["red"]),
        ({"answer": 4}, ["4"]),
        ({"answers": ["red", 2]}, ["red", "2"]),
        ({"answer": ["red", "crimson"]}, ["red", "crimson"]),
        ({"answer": "[1, 2]"}, ["[1, 2]"]),
        ({"answers": "[1, 2]"}, ["[1, 2]"]),
        ({"answers": ["[1, 2]", "[1,2]"]}, ["[1, 2]", "[1,2]"]),
        ({}, []),
    ],
    ids=["text", "number", "several", "several as one", "an interval", "one in answers", "two", "none"],
)
def test_answers(fields, answers):
    assert parse("plain", {"question": "?", **fields}).answers == answers


def test_the_rest_of_a_plain_row():
    row = parse("plain", {"question": "?", "id": 12, "caption": "a cat", "system": "Be brief."})
    assert (row.id, row.caption) == ("12", "a cat")
    assert row.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]


def test_a_system_turn_wins_over_a_system_column():
    turns = [{"role": "system", "content": "turn"}, USER]
    assert parse("conversational", {"messages": turns, "system": "column"}).prompt == turns


# Turns ----------------------------------------------------------------------------------------------------------------


def turns(*roles):
    return {"messages": [{"role": role, "content": f"text {i}"} for i, role in enumerate(roles)]}


def test_of_several_turns_the_last_answer_is_the_demonstration():
    row = parse("conversational", turns("system", "user", "assistant", "user", "assistant"))
    assert [turn["role"] for turn in row.prompt] == ["system", "user", "assistant", "user"]
    assert row.demonstration == "text 4"


def test_turns_that_end_with_a_question_have_no_demonstration():
    row = parse("conversational", turns("user", "assistant", "user"))
    assert (len(row.prompt), row.demonstration) == (3, None)


@pytest.mark.parametrize(
    "roles",
    [
        ("user", "user"),
        ("assistant",),
        ("user", "assistant", "assistant"),
        ("user", "system", "user"),
        ("system", "system", "user"),
        ("system", "assistant"),
        ("assistant", "user"),
    ],
)
def test_turns_out_of_order_are_refused(roles):
    with pytest.raises(DataError, match="turns: a prompt with the roles"):
        parse("conversational", turns(*roles))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: found []"),
        ({"messages": "text"}, 'messages: found "text"'),
        ({"messages": [None]}, "messages: its messages are no turns"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'turn 1: role found "tool"'),
        ({"messages": [{"content": "x"}]}, "turn 1: role is missing"),
        ({"messages": [{"role": "user"}]}, "turn 1: its content: is missing"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1: its content: is missing"),
        ({"messages": [{"role": "user", "content": [3]}]}, "turn 1: its content: found [3]"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "turn 2: the assistant's text is empty"),
        ({"prompt": "<image>"}, "turn 1: the user's text is empty"),
        ({"prompt": "a", "teacher_response": 3}, "teacher_response: found 3"),
        ({"prompt": "a", "answers": [{}]}, "answers: found [{}]"),
        ({"prompt": "a", "completion": 3}, "completion: found 3"),
    ],
)
def test_what_can_not_be_read_is_named_by_its_field(fields, message):
    with pytest.raises(DataError) as caught:
        parse("conversational", fields)
    assert str(caught.value).startswith(message)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "a"}]}]},
            "turn 1: an item's type found",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "turn 1: an item's type is missing"),
        ({"messages": [USER], "videos": ["a.mp4"]}, "videos: "),
        ({"messages": [USER], "audios": ["a.wav"]}, "audios: "),
        ({"messages": [USER], "images": ["a.png", None]}, "images: one of its 2 pictures is null"),
        ({"messages": [{"role": "system", "content": "x"}]}, "turns: "),
        ({"messages": [{"role": "system", "content": ""}]}, "turns: "),
    ],
)
def test_what_would_be_lost_is_refused(more, message):
    with pytest.raises(DataError, match=f"^{message}"):
        parse("conversational", more)


def test_what_says_nothing_is_nothing():
    turns = [
        {"role": "system", "content": " "},
        {"role": "user", "content": [{"type": "input_text", "text": "colour?"}]},
    ]
    assert parse("conversational", {"messages": turns, "videos": [], "audios": None}).prompt == [USER]


@pytest.mark.parametrize("format", ["verl", "pairs", "plain", "sharegpt", "conversational"])
def test_a_row_without_a_question_is_refused_in_every_format(format):
    with pytest.raises(DataError, match="is missing"):
        parse(format, {"image": "a.png", "answer": "red"})


def test_columns_that_fit_no_format_are_named():
    with pytest.raises(DataError, match="no question in answer, text"):
        detect({"text": "x", "answer": "y", "question": None})


# Marks ----------------------------------------------------------------------------------------------------------------


def test_marks_are_counted_in_all_the_users_turns_and_taken_out():
    messages = [
        {"role": "user", "content": "<image>first <image>"},
        {"role": "assistant", "content": "write <image> to mark one"},
        {"role": "user", "content": "second<image>"},
    ]
    row = parse("sharegpt", {"messages": messages})
    assert row.marks == 3
    assert [turn["content"] for turn in row.prompt] == ["first", "write <image> to mark one", "second"]


@pytest.mark.parametrize("kind", ["image", "image_url"])
def test_image_items_are_counted(kind):
    content = [{"type": kind, kind: "a.png"}, {"type": "text", "text": "colour?"}, {"type": kind}]
    row = parse("conversational", {"messages": [{"role": "user", "content": content}]})
    assert (row.marks, row.images, row.prompt) == (2, [], [USER])


@pytest.mark.parametrize(
    ("column", "images"),
    [
        ({"image": "a.png"}, ["a.png"]),
        ({"images": ["a.png", "b.png"]}, ["a.png", "b.png"]),
        ({"images": "[a].png"}, ["[a].png"]),
        ({"images": [], "image": None}, []),
        ({"image": {"bytes": b"x", "path": "a.png"}}, [{"bytes": b"x", "path": "a.png"}]),
    ],
)
def test_pictures_are_read_from_their_column(column, images):
    assert parse("plain", {"question": "?", **column}).images == images


# Documentation --------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_the_documented_rows_are_read_as_documented(name):
    examples = PAGE.partition(f"**`{name}`**")[2].partition("```json\n")[2].partition("```")[0].splitlines()
    assert examples
    for example in examples:
        fields = json.loads(example)
        assert detect(fields) == name
        row = parse(name, fields)
        assert len(row.images) == 1
        assert row.prompt[-1]["role"] == "user"
