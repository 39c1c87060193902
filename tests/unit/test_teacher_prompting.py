"""How a row is put to a teacher: instruction, examples, pictures, captions."""

import pytest

from prism_cli.assembly.checks import check_teacher
from prism_cli.assembly.response import grammar_of
from prism_cli.assembly.teacher import prompting_of, resolve_teacher
from prism_cli.data.rows import png
from prism_cli.errors import RecipeError
from prism_cli.recipes.sections import ResponseSection
from prism_cli.recipes.teachers import DatasetTeacher, EmbeddedTeacher, OpenAITeacher
from prism_cli.responses import Grammar, Part, ResponseSettings
from prism_cli.teacher.prompting import split_caption, with_caption
from prism_cli.worlds import world

GRAMMAR = grammar_of(ResponseSection())
POLICYS = "Be brief."
EXAMPLE = world("shapes").examples("train", 1, 0)[0]
PICTURE = png(EXAMPLE.image)


def row(*turns, system=POLICYS, caption=None):
    prompt = [{"role": "system", "content": system}] if system else []
    prompt += [{"role": role, "content": content} for role, content in zip(("user", "assistant") * 2, turns)]  # noqa: B905
    return {"id": "7", "prompt": prompt, "images": [{"bytes": PICTURE, "path": None}], "caption": caption}


def prompting(section, grammar, instruction):
    return prompting_of(resolve_teacher(section), ResponseSettings(grammar, instruction))


def request(asked, section=None, instruction=POLICYS, **settings):
    return prompting(section or OpenAITeacher(**settings), GRAMMAR, instruction).request(asked)


def systems(asked):
    return [message["content"] for message in asked.messages if message["role"] == "system"]


def test_the_teacher_is_given_the_form_where_the_policy_has_an_instruction_of_its_own():
    assert systems(request(row("a1 ?"))) == [GRAMMAR.instruction()]
    assert systems(request(row("a1 ?", system=None), instruction=None)) == [GRAMMAR.instruction()]


def test_the_teachers_instruction_may_be_any_text_or_the_policys():
    assert systems(request(row("a1 ?"), instruction=POLICYS)) == [GRAMMAR.instruction()]
    assert systems(request(row("a1 ?"), **{"section": OpenAITeacher(instruction="Teach.")})) == ["Teach."]
    assert systems(request(row("a1 ?"), **{"section": OpenAITeacher(instruction=None)})) == [POLICYS]


def test_a_rows_own_system_message_wins():
    assert systems(request(row("a1 ?", system="You are a cat."))) == ["You are a cat."]


def test_parts_without_tags_ask_for_nothing_so_the_policys_instruction_is_sent():
    whole = Grammar({"whole": Part((), 1.0)}, None)
    assert systems(prompting(OpenAITeacher(), whole, POLICYS).request(row("a1 ?"))) == [POLICYS]


def test_the_embedded_teacher_reads_rows_as_they_are():
    asked = request(row("a1 ?"), EmbeddedTeacher(type="embedded"))
    assert (asked.messages, asked.images) == (row("a1 ?")["prompt"], (PICTURE,))


def test_examples_stand_between_system_and_question_in_the_grammars_form():
    response = {"caption": "a cat", "think": "it sits", "answer": "sitting"}
    asked = request(row("a1 ?", "b", "a2 ?"), examples=[{"question": "What does it do?", "response": response}])
    assert [message["role"] for message in asked.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert asked.messages[1]["content"] == "What does it do?"
    assert asked.messages[2]["content"] == (
        "<caption> a cat </caption> <think> it sits </think> <answer> sitting </answer>"
    )
    # The pictures belong to the row's first question, not to the example's.
    assert (asked.images, asked.images_at) == ((PICTURE,), 3)


@pytest.mark.parametrize("response", [{"think": "x", "answer": "7"}, {"caption": "c", "think": " ", "answer": "7"}])
def test_an_example_in_another_form_is_refused_before_anything_is_asked(response):
    section = OpenAITeacher(endpoint="http://h/v1", examples=[{"question": "?", "response": response}])
    with pytest.raises(RecipeError, match=r"teacher: examples\.0\.response"):
        check_teacher(section, "align", GRAMMAR)


# Text-only teachers --------------------------------------------------------------------------------------------------


def test_a_text_only_teacher_gets_the_caption_and_no_picture():
    asked = request(row("what is at a1 ?", caption="a1 red square"), modality="text")
    assert asked.images == ()
    assert asked.messages[-1]["content"] == "The picture shows: a1 red square\n\nwhat is at a1 ?"
    assert systems(asked) == [
        "Answer in exactly this form: <think> step-by-step reasoning </think> <answer> final answer only </answer>"
    ]


def test_without_a_caption_it_gets_the_question_alone():
    assert request(row("what is at a1 ?"), modality="text").messages[-1]["content"] == "what is at a1 ?"


def test_it_writes_every_part_but_perception_each_with_its_weight():
    taught = prompting(OpenAITeacher(modality="text"), GRAMMAR, None).grammar
    assert dict(taught.parts) == {"reasoning": Part(("think", "answer"), 0.5)}
    assert taught.answer_tag == "answer"
    assert prompting(DatasetTeacher(type="dataset"), GRAMMAR, None).grammar == GRAMMAR


def test_what_it_can_not_teach_is_refused_by_name():
    section = OpenAITeacher(endpoint="http://h/v1", modality="text")
    lines = dict(check_teacher(section, "align", GRAMMAR))
    assert lines["teacher teaches"].startswith("reasoning, ")
    for stage in ("sft", "eval", "collect"):
        with pytest.raises(RecipeError, match=f"prism {stage}.*needs whole responses"):
            check_teacher(section, stage, GRAMMAR)
    with pytest.raises(RecipeError, match="nothing to teach"):
        check_teacher(section, "align", Grammar({"perception": Part(("caption",), 1.0)}, None))


def test_a_task_without_perception_can_be_taught_whole_by_text():
    whole = Grammar({"whole": Part((), 1.0)}, None)
    assert len(check_teacher(OpenAITeacher(endpoint="http://h/v1", modality="text"), "sft", whole)) == 1


def test_a_caption_is_read_back_from_the_question_it_was_put_before():
    assert split_caption(with_caption("a1 red square", "what is at a1 ?")) == ("a1 red square", "what is at a1 ?")
    assert split_caption("what is at a1 ?") == (None, "what is at a1 ?")


def test_the_worlds_oracle_reasons_from_a_told_picture_and_guesses_without():
    place = world("shapes")
    for example in place.examples("test", 40, 3):
        told = place.oracle(example.question, None, "text_only", told=example.caption)
        assert told["answer"] == example.answer
    blind = [place.oracle(e.question, None, "text_only")["answer"] == e.answer for e in place.examples("test", 40, 3)]
    assert sum(blind) < 20
