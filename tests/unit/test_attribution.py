"""Causes are found by what changes the answer. The scripted policies add up the two numbers a caption names."""

import json
import math

import pytest
from PIL import Image
from tests.tiny import tiny_policy

from prism_cli.errors import RecipeError
from prism_cli.evaluation.attribution import Reread, Tried, Wrong, cause_of, holds, retry, worth_rereading
from prism_cli.evaluation.causes import caption_block, cause_shares
from prism_cli.evaluation.sampling import sample_responses
from prism_cli.models import multimodal
from prism_cli.report.summary_table import causes_table
from prism_cli.responses import Grammar, Part

TRUE, SEEN = "2 4", "2 3"  # the true sum is 6


def verify(answer, accepted, question):
    return answer in accepted


def adds(retry):
    return str(sum(map(int, retry.caption.split())))


def adds_two_more(retry):
    return str(sum(map(int, retry.caption.split())) + 2)


def doubles_the_first(retry):
    return str(2 * int(retry.caption[0]))


def looks(retry):
    """Reads the picture, whatever the caption says."""
    return {"own": "7", "blank": "0", "other": "9"}[retry.picture]


def looks_well(retry):
    return {"own": "6", "blank": "0", "other": "9"}[retry.picture]


def wrong(answer, caption, true_caption=TRUE, teacher=None, accepted=("6",)):
    return Wrong("what is the sum", accepted, answer, caption, true_caption, teacher)


def found(policy, case, reread=None):
    (tried,) = retry([case], lambda retries: [policy(one) for one in retries])
    return cause_of(case, tried, verify, reread)


@pytest.mark.parametrize(
    ("policy", "answer", "caption", "cause"),
    [
        (adds, "5", SEEN, "perception"),
        (adds_two_more, "8", TRUE, "reasoning"),
        (adds_two_more, "7", SEEN, "both"),
        # Neither caption counts; what it looked at may have been seen wrong too.
        (looks, "7", TRUE, "reasoning"),
        (looks, "7", SEEN, "unknown"),
        # Sampled: greedily its own caption leads to the right answer, so this once the reasoning slipped.
        (adds, "9", TRUE, "reasoning"),
        (adds, "9", "4 2", "reasoning"),
        # Sampled, as above, but it looked at the picture: its caption need not have sufficed.
        (looks_well, "9", SEEN, "unknown"),
        # Sampled: the caption misleads, and 9 is not what follows from it.
        (adds, "9", SEEN, "both"),
    ],
)
def test_the_cause_is_what_must_be_put_right(policy, answer, caption, cause):
    assert found(policy, wrong(answer, caption)) == cause


def test_a_policy_that_reasons_past_what_it_saw_wrong_needs_someone_who_reasons_well():
    case = wrong("4", SEEN)
    assert found(doubles_the_first, case) == "unknown"  # 4 from either caption: the second number is never used
    assert (
        found(doubles_the_first, case, reread=Reread("5", "6")) == "both"
    )  # a good reasoner is misled by the caption too
    assert found(doubles_the_first, case, reread=Reread("6", "6")) == "reasoning"  # not misled
    assert found(doubles_the_first, case, reread=Reread("4", "6")) == "perception"  # does as the response did
    assert found(doubles_the_first, case, reread=Reread("6", "7")) == "unknown"  # no good reasoner here
    assert found(doubles_the_first, case, reread=Reread(None, "6")) == "unknown"


def test_a_caption_that_cures_is_not_put_to_the_teacher():
    tried = Tried(again="5", corrected="6")
    assert not worth_rereading(wrong("5", SEEN), tried, verify)
    assert worth_rereading(wrong("9", SEEN), tried, verify)
    assert worth_rereading(wrong("5", SEEN), Tried(again="5", corrected="8"), verify)
    assert not worth_rereading(wrong(None, None), Tried(), verify)
    assert not worth_rereading(wrong("5", SEEN, true_caption=None), Tried(), verify)


def test_a_malformed_response_is_wrong_by_its_format():
    assert found(adds, wrong(None, None)) == "format"


def test_a_reference_is_doubted_where_teacher_and_policy_agree_against_it():
    assert found(adds, wrong("6", TRUE, teacher="6", accepted=("60",))) == "verifier"
    # Its own answer differs, but told what is there it says what the teacher says.
    assert found(adds, wrong("5", SEEN, teacher="6", accepted=("60",))) == "verifier"
    assert found(adds, wrong("5", SEEN, teacher="6")) == "perception"
    # Told what is there, the teacher says again what it said of the picture.
    doubted = wrong("8", TRUE, teacher="6", accepted=("60",))
    assert found(adds_two_more, doubted, reread=Reread("6", "6")) == "verifier"
    # Both are wrong, each in its own way: no reason to doubt the reference.
    assert found(adds_two_more, wrong("8", TRUE, teacher="3")) == "reasoning"


def test_without_a_true_caption_nothing_is_tried_and_nothing_guessed():
    case = wrong("5", SEEN, true_caption=None)
    assert retry([case], lambda retries: pytest.fail("asked")) == [Tried()]
    assert cause_of(case, Tried(), verify) == "unknown"
    assert holds(case, Tried(), verify) == {}


def test_who_looks_again_is_told_from_who_relies_on_its_caption():
    def held(policy, answer):
        case = wrong(answer, SEEN)
        (tried,) = retry([case], lambda retries: [policy(one) for one in retries])
        return holds(case, tried, verify)

    assert held(adds, "5") == {"again": True, "blind": True, "swapped": True}
    assert held(looks, "7") == {"again": True, "blind": False, "swapped": False}


def test_answers_come_back_to_their_cases_whatever_stands_between():
    cases = [wrong("5", SEEN), wrong(None, None), wrong("8", TRUE)]
    tried = retry(cases, lambda retries: [f"{one.case} {one.caption} {one.picture}" for one in retries])
    assert tried == [
        Tried("0 2 3 own", "0 2 4 own", "0 2 3 blank", "0 2 3 other"),
        Tried(),
        Tried("2 2 4 own", "2 2 4 own", "2 2 4 blank", "2 2 4 other"),
    ]


# In a run's files -----------------------------------------------------------------------------------------------------


def test_shares_come_with_intervals_by_decoding_and_source(tmp_path):
    lines = [
        {"id": id, "source": source, "decoding": "greedy", "cause": cause, "holds": held}
        for id, source, cause, held in [
            ("a", "maps", "perception", {"again": True, "blind": True, "swapped": False}),
            ("b", "maps", "reasoning", {"again": True, "blind": False, "swapped": False}),
            ("c", "charts", "format", {}),
            ("d", "charts", "perception", {"again": True, "blind": True, "swapped": True}),
        ]
    ]
    (tmp_path / "attribution-sft.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    everywhere, charts, maps = cause_shares(tmp_path, "sft")
    assert [one["source"] for one in (everywhere, charts, maps)] == [None, "charts", "maps"]
    assert [one["wrong"] for one in (everywhere, charts, maps)] == [4, 2, 2]
    half = everywhere["causes"]["perception"]
    # Wilson, 2 of 4: 0.5 ± z √(0.25/4 + z²/64) / (1 + z²/4).
    assert (half["value"], half["n"]) == (0.5, 4)
    assert math.isclose(half["high"] - 0.5, 0.3500, abs_tol=1e-4)
    assert everywhere["holds"]["blind"]["value"] == pytest.approx(2 / 3)
    assert maps["causes"]["format"]["value"] == 0.0
    assert charts["holds"]["swapped"]["n"] == 1
    shown = causes_table([everywhere, charts, maps])
    assert [str(column.header) for column in shown.columns[1:]] == ["sft, greedy", "sft, charts", "sft, maps"]
    # What never occurs has no line.
    assert list(shown.columns[0].cells)[1:] == ["perception", "reasoning", "format"]


def test_responses_without_a_block_of_their_own_for_what_is_seen_are_refused():
    assert caption_block(Grammar({"perception": Part(("caption",), 0.5), "rest": Part(("answer",), 0.5)})).tag == (
        "caption"
    )
    for parts in ({"whole": Part((), 1.0)}, {"perception": Part(("a", "b"), 0.5), "rest": Part(("answer",), 0.5)}):
        with pytest.raises(RecipeError, match="no block for what is seen"):
            caption_block(Grammar(parts, "answer" if "rest" in parts else None))


# Going on from a given beginning --------------------------------------------------------------------------------------


def test_a_response_goes_on_from_its_beginning_as_it_went_on_without_one():
    model, processor = tiny_policy()
    picture = Image.new("RGB", (48, 48), "red")
    asked = [
        multimodal([{"role": "user", "content": question}], [picture])
        for question in ("what is at b2 ?", "corners of b2 plus corners of c1 ?", "what is right of a1 ?")
    ]
    settings = {"max_tokens": 16, "temperature": 0.0, "seed": 0, "suppress": [], "batch_size": 3}
    whole = [response.token_ids for response in sample_responses(model, processor, asked, **settings)]
    cuts = [2, 5, 0]
    begun = [processor.tokenizer.decode(ids[:cut]) for ids, cut in zip(whole, cuts, strict=True)]
    rest = sample_responses(model, processor, asked, prefills=begun, **settings)
    for ids, cut, more in zip(whole, cuts, rest, strict=True):
        assert more.token_ids[: 16 - cut] == ids[cut:]
