import re
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_policy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prism_cli.responses import Grammar, Part, token_pieces

DEFAULT = Grammar({"perception": Part(("caption",), 0.5), "reasoning": Part(("think", "answer"), 0.5)})
WHOLE = Grammar({"response": Part((), 1.0)}, answer_tag=None)
TAG = re.compile(r"</?(caption|think|answer)>")

block = st.text(alphabet="ab .,<>/=é\n", min_size=1).map(str.strip).filter(lambda text: text and not TAG.search(text))
blank = st.text(alphabet=" \n", max_size=2)


@st.composite
def written(draw):
    """A well-formed text with any blanks, and its blocks."""
    blocks = {tag: draw(block) for tag in DEFAULT.tags}
    texts = [f"<{tag}>{draw(blank)}{text}{draw(blank)}</{tag}>{draw(blank)}" for tag, text in blocks.items()]
    return draw(blank) + "".join(texts), blocks


def squeezed(text):
    return "".join(text.split())


# Parsing --------------------------------------------------------------------------------------------------------------


@given(st.fixed_dictionaries(dict.fromkeys(DEFAULT.tags, block)))
def test_what_is_rendered_is_read_back(blocks):
    response = DEFAULT.parse(DEFAULT.render(blocks))
    assert response.well_formed
    assert response.blocks == blocks
    assert response.answer == blocks["answer"]


@given(written())
def test_blanks_around_blocks_change_nothing(text_and_blocks):
    text, blocks = text_and_blocks
    response = DEFAULT.parse(text)
    assert (response.well_formed, response.blocks) == (True, blocks)
    assert response.parts == {
        "perception": f"<caption>{blocks['caption']}</caption>",
        "reasoning": f"<think>{blocks['think']}</think><answer>{blocks['answer']}</answer>",
    }


GOOD = "<caption> a </caption> <think> b </think> <answer> c </answer>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "<caption> stands 0 times"),
        ("c", "<caption> stands 0 times"),
        (GOOD.replace("</think>", ""), "</think> stands 0 times"),
        (GOOD + GOOD, "<caption> stands 2 times"),
        (GOOD.replace(" b ", " b <think> "), "<think> stands 2 times"),
        (GOOD.replace(" b ", " "), "<think> is empty"),
        (GOOD.replace(" c ", ""), "<answer> is empty"),
        ("so " + GOOD, "text or another block stands before <caption>"),
        (GOOD.replace("</caption>", "</caption> and"), "text or another block stands before <think>"),
        (GOOD + " done", "text after </answer>"),
        ("<think> b </think> <caption> a </caption> <answer> c </answer>", "text or another block stands before"),
        ("<caption> a <think> </caption> b </think> <answer> c </answer>", "text or another block stands before"),
        ("</caption> a <caption> <think> b </think> <answer> c </answer>", ""),
    ],
)
def test_malformed_texts_have_no_parts_and_say_why(text, problem):
    response = DEFAULT.parse(text)
    assert not response.well_formed
    assert (response.blocks, response.parts, response.answer) == ({}, {}, None)
    assert response.problem.startswith(problem)


def test_an_inequality_in_a_block_is_text():
    response = DEFAULT.parse(GOOD.replace(" b ", " x > y and y < z "))
    assert response.blocks["think"] == "x > y and y < z"


def test_without_tags_any_text_is_one_part_and_its_own_answer():
    response = WHOLE.parse("  four <b> \n")
    assert (response.well_formed, response.parts, response.answer) == (True, {"response": "four <b>"}, "four <b>")
    assert not WHOLE.parse(" \n ").well_formed
    assert WHOLE.instruction() is None


def test_the_instruction_names_every_block_in_order():
    own = Grammar({"first": Part(("think",), 1.0), "second": Part(("verdict",), 1.0)}, answer_tag="verdict")
    assert own.instruction() == (
        "Answer in exactly this form: <think> step-by-step reasoning </think> <verdict> verdict </verdict>"
    )


@pytest.mark.parametrize(
    ("parts", "answer", "problem"),
    [
        ({}, None, "no part"),
        ({"a": Part(("x",), 1.0), "b": Part(("x",), 1.0)}, "x", "stands in two parts"),
        ({"a": Part((), 1.0), "b": Part(("x",), 1.0)}, "x", "must be the only part"),
        ({"a": Part(("x y",), 1.0)}, "x y", "a tag is a word"),
        ({"a": Part(("x",), 1.0)}, "answer", "stands in no part"),
        ({"a": Part(("x",), 0.0)}, "x", "positive sum"),
        ({"a": Part(("x",), float("nan"))}, "x", "positive sum"),
    ],
)
def test_parts_that_can_not_stand_together_are_refused(parts, answer, problem):
    with pytest.raises(ValueError, match=problem):
        Grammar(parts, answer)


# Splitting tokens -----------------------------------------------------------------------------------------------------


@lru_cache
def byte_level():
    """A byte-level BPE like Qwen's, whose merges glue a tag's edges to their neighbours."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["<caption>a b.</caption><think>a.</think><answer>b</answer>\n", ">\n\n", "a.</think>\n<answer>"] * 50
    settings = {"vocab_size": 330, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(special_tokens=["<|im_end|>"], **settings))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def split(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids, DEFAULT.split_token_ids(ids, token_pieces(tokenizer, ids))


def test_the_byte_level_vocabulary_has_straddling_tokens():
    tokens = byte_level().tokenize("<caption>a.</caption><think>")
    assert "><" in tokens
    assert ".</" in tokens


@settings(deadline=None)
@given(written())
def test_parts_of_byte_level_tokens_are_the_parts_of_the_text(text_and_blocks):
    text, _ = text_and_blocks
    _, parts = split(byte_level(), text)
    expected = DEFAULT.parse(text).parts
    read = {name: squeezed(byte_level().decode(tokens)) for name, tokens in parts.items()}
    # Nothing but blanks is lost, and a straddling token goes whole to the earlier part.
    assert read["perception"] + read["reasoning"] == squeezed(text)
    extra = len(read["perception"]) - len(squeezed(expected["perception"]))
    assert read["perception"].startswith(squeezed(expected["perception"]))
    assert 0 <= extra < len(byte_level().convert_ids_to_tokens(parts["perception"][-1]))


def test_a_straddling_token_goes_to_the_earlier_part():
    _, parts = split(byte_level(), "<caption>a.</caption><think>a.</think><answer>b</answer>")
    read = {name: byte_level().decode(tokens) for name, tokens in parts.items()}
    assert read == {"perception": "<caption>a.</caption><", "reasoning": "think>a.</think><answer>b</answer>"}


def test_blank_tokens_between_parts_are_dropped():
    text = "<caption>a</caption> \n\n <think>a</think> \n <answer>b</answer>"
    ids, parts = split(byte_level(), text)
    assert byte_level().decode(parts["reasoning"]).startswith("<think>")
    assert len(parts["perception"]) + len(parts["reasoning"]) < len(ids)


def test_word_level_tokens_split_exactly_at_the_tags():
    _, processor = tiny_policy()
    text = "<caption> a1 red square </caption> <think> so 4 </think> <answer> 4 </answer>"
    _, parts = split(processor.tokenizer, text)
    assert processor.tokenizer.convert_ids_to_tokens(parts["perception"]) == text.split()[:5]
    assert processor.tokenizer.convert_ids_to_tokens(parts["reasoning"]) == text.split()[5:]


@pytest.mark.parametrize("which", ["word level", "byte level"])
def test_special_tokens_belong_to_no_part(which):
    tokenizer = tiny_policy()[1].tokenizer if which == "word level" else byte_level()
    text = "<caption> a1 </caption> <think> 4 </think> <answer> 4 </answer>"
    ids, parts = split(tokenizer, text)
    marked = [tokenizer.eos_token_id, *ids[:2], tokenizer.eos_token_id, *ids[2:], tokenizer.eos_token_id]
    assert DEFAULT.split_token_ids(marked, token_pieces(tokenizer, marked)) == parts


def test_tokens_of_a_malformed_text_have_no_parts():
    _, parts = split(byte_level(), "<caption>a</caption><think>a</think>")
    assert parts is None


def test_a_character_cut_in_two_is_no_reason_to_fail():
    ids, _ = split(byte_level(), GOOD.replace(" a ", " é "))
    pieces = token_pieces(byte_level(), ids)
    cut = next(i for i, piece in enumerate(pieces) if piece.startswith(b"\xa9") or piece.endswith(b"\xa9"))
    del ids[cut], pieces[cut]
    parts = DEFAULT.split_token_ids(ids, pieces)
    assert sum(map(len, parts.values())) <= len(ids)
    assert byte_level().decode(parts["perception"]).startswith("<caption>")


def test_without_tags_all_tokens_are_one_part():
    ids = byte_level()("a b.", add_special_tokens=False)["input_ids"]
    marked = [*ids, byte_level().eos_token_id]
    assert WHOLE.split_token_ids(marked, token_pieces(byte_level(), marked)) == {"response": ids}


def test_without_a_part_the_others_keep_their_tags_and_weights():
    reasoning = DEFAULT.without("perception")
    assert dict(reasoning.parts) == {"reasoning": DEFAULT.parts["reasoning"]}
    assert reasoning.parse("<think> a </think> <answer> 7 </answer>").answer == "7"
    assert DEFAULT.without("style") is DEFAULT
    assert DEFAULT.without("reasoning").answer_tag is None
    with pytest.raises(ValueError, match="only part"):
        reasoning.without("reasoning")


def test_each_character_is_read_a_bounded_number_of_times():
    class Counted(bytes):
        read = 0

        def strip(self, *args):
            Counted.read += 1
            return super().strip(*args)

    text = f"<caption>{'a ' * 5000}</caption> <think>b</think> <answer>c</answer>"
    pieces = [Counted(character.encode()) for character in text]
    DEFAULT.split_token_ids(range(len(pieces)), pieces)
    assert Counted.read <= len(pieces)
