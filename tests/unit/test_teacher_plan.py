"""What asking a teacher would take, and what it would be sent, by what is kept and without asking."""

import pytest
from PIL import Image
from tests.faulty_endpoint import FaultyEndpoint, endpoint_at

from prism_cli.assembly.discriminator import questions_of_align
from prism_cli.assembly.response import grammar_of
from prism_cli.assembly.teacher_plan import teacher_lines, teacher_preview
from prism_cli.data.rows import dataset, has_pictures, png, row
from prism_cli.endpoint.budget import Price
from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.estimate import estimate
from prism_cli.endpoint.kept import KeptAnswers
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.endpoint.store import AnswerStore, StoredAnswer
from prism_cli.errors import RecipeError
from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.sections import ResponseSection
from prism_cli.teacher.prompting import Prompting

GRAMMAR = grammar_of(ResponseSection())
TINY = ["model={type: tiny}", "eval_data=null", "data.size=5"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request(text, *images):
    return EndpointRequest([{"role": "user", "content": text}], images)


@pytest.fixture
def plan(tmp_path):
    """The estimate of requests, some of them kept, by an empty store's endpoint with answers of at most 100 tokens."""

    def plan(requests, kept=(), at_most=None, price=None, calls=(), **settings):
        store = AnswerStore(tmp_path / "kept.sqlite")
        answers = KeptAnswers(endpoint_at("http://h/v1", max_tokens=100, price=price, **settings), store)
        for one in requests:
            if one.messages[0]["content"] in kept and answers.kept(one) is None:
                store.put(StoredAnswer(answers.key(one), "m", "m", "{}", "answer"))
        for number, (prompt, completion) in enumerate(calls):
            tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
            store.put(StoredAnswer(f"other {number}", "m", "m", "{}", "answer", **tokens))
        return estimate(requests, answers, at_most)

    return plan


def test_equal_questions_are_asked_once_and_kept_ones_not_at_all(plan):
    found = plan([request("a"), request("b"), request("a"), request("c")], kept="b")
    assert (found.calls, found.kept) == (2, 1)


def test_tokens_are_estimated_from_characters_and_pixels(plan):
    # 30 × 50 pixels are 2 tokens, 8 characters 2; a picture beyond the limit of 750 pixels is scaled down to 1 token.
    picture = png(Image.new("RGB", (30, 50)))
    found = plan([request("12345678", picture)])
    assert (found.pictures, found.prompt_tokens, found.completion_tokens) == (1, 4, 100)
    assert plan([request("12345678", picture)], max_image_pixels=750).prompt_tokens == 3


def test_what_is_known_of_the_model_goes_before_the_estimate(plan):
    found = plan([request("a"), request("b")], calls=[(310, 42), (311, 42)] * 10)
    assert (found.prompt_tokens, found.completion_tokens, found.averaged) == (621, 84, True)


def test_dollars_follow_from_tokens_and_price_or_are_not_told(plan):
    # 1000 tokens to read at $2 and 100 to write at $30 a million are $0.002 + $0.003.
    found = plan([request("x" * 4000)], price=Price(2.0, 30.0))
    assert found.usd == pytest.approx(0.005)
    assert dict(found.lines())["teacher cost"] == "at most about $0.0050"
    assert "dollars are not" in dict(plan([request("a")]).lines())["teacher cost"]


def test_a_stage_that_asks_fewer_questions_than_there_are_rows_pays_for_those(plan):
    found = plan([request("abcd" * 10 + str(i)) for i in range(10)], at_most=5)
    assert (found.calls, found.prompt_tokens, found.completion_tokens) == (5, 55, 500)


def test_when_all_is_kept_nothing_is_asked(plan):
    assert plan([request("a")], kept="a").lines() == [("teacher calls", "none: all 1 answers are kept")]


def test_align_asks_about_its_steps_prompts_and_its_warm_ups():
    recipe = load_recipe("align", "tiny", [*TINY, "max_steps=30", "discriminator.warmup={pairs: 100, held_out: 20}"])
    assert questions_of_align(recipe) == 30 * 12 + 120
    assert questions_of_align(load_recipe("align", "tiny", [*TINY, "max_steps=null", "epochs=1"])) is None


def test_kept_answers_are_recognised_and_averaged_from_twenty_on(tmp_path):
    store, prompting = AnswerStore(tmp_path / "a.sqlite"), Prompting(GRAMMAR)
    answers = KeptAnswers(Endpoint("http://h/v1", "m"), store, prompting.problem)
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": f"q{i}"}], "images": []} for i in range(30)]
    requests = [prompting.request(one) for one in rows]
    text = GRAMMAR.render({"caption": "c", "think": "t", "answer": "a"})
    for one in requests[:19]:
        store.put(StoredAnswer(answers.key(one), "m", "m", "{}", text, "stop", 100, 10))
    assert estimate(requests, answers)[:2] == (11, 19)
    assert not estimate(requests, answers).averaged
    store.put(StoredAnswer("other", "m", "m", "{}", "malformed", "stop", 300, 10))
    ahead = estimate(requests, answers)
    assert (ahead.calls, ahead.averaged, ahead.prompt_tokens) == (11, True, 11 * 110)


def test_whether_rows_have_pictures_is_told_without_reading_one(tmp_path):
    assert not has_pictures(dataset([row("a", "q", [])]))
    assert has_pictures(dataset([row("a", "q", []), row("b", "q", [b"no picture at all"])]))


# Preview -------------------------------------------------------------------------------------------------------------


def test_a_preview_shows_the_requests_and_neither_key_nor_network(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FaultyEndpoint() as endpoint:
        recipe = load_recipe("align", "tiny", TINY, {"teacher.endpoint": endpoint.url, "teacher.model": "m"})
        text = teacher_preview("align", recipe, 2)
        assert (endpoint.bodies, endpoint.keys) == ([], [])
    assert text.count(f"POST {endpoint.url}/chat/completions") == 2
    assert "model: m" in text
    assert "max_tokens: 8192" in text
    assert "<image 48×48 PNG, " in text
    assert GRAMMAR.instruction() in text
    assert "sk-secret" not in text
    assert list(folder.iterdir()) == []


def test_a_preview_needs_no_key_and_no_model(folder, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    recipe = load_recipe("align", "tiny", TINY, {"teacher.endpoint": "https://far.example/v1"})
    assert "POST https://far.example/v1/chat/completions" in teacher_preview("align", recipe, 1)


def test_a_preview_without_a_teacher_is_refused(folder):
    with pytest.raises(RecipeError, match="asks no teacher"):
        teacher_preview("sft", load_recipe("sft", "tiny", ["data.size=5"]), 1)


def test_the_plan_before_a_run_writes_nothing_and_says_what_it_can_not_tell(folder):
    recipe = load_recipe("align", "tiny", TINY)
    assert dict(teacher_lines("align", recipe))["teacher calls"].startswith("5, with 5 pictures; 0 answers are kept")
    assert list(folder.iterdir()) == []
    missing = load_recipe("align", "tiny", ["eval_data=null"], {"from": "runs/none"})
    assert "not known yet" in dict(teacher_lines("align", missing))["teacher calls"]
