"""Batches against a real endpoint on this machine: what is asked, paid once, and picked up again."""

import json
import threading
import time
from collections import Counter

import openai
import pytest
from starlette.applications import Starlette
from tests.faulty_endpoint import endpoint_at

from prism_cli.endpoint.batches import client as batches
from prism_cli.endpoint.batches import results as batch_results
from prism_cli.endpoint.batches.client import BatchAsker
from prism_cli.endpoint.batches.ledger import Ledger
from prism_cli.endpoint.budget import Budget, Caps, Price
from prism_cli.endpoint.client import EndpointClient
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import BudgetError, DataError, TeacherError
from prism_cli.teacher.server import ServedEndpoint, create_app


class World:
    """An endpoint that counts what it is asked; some questions it can't answer, or not at once, or badly."""

    def __init__(self, **options):
        self.asked: Counter[str] = Counter()
        self.app = create_app(self.answer, "m", **options)
        self.server = ServedEndpoint(self.app)

    def answer(self, request):
        self.asked[request.question] += 1
        if request.question == "riddle":
            raise DataError("can't read 'riddle'")
        if request.question.startswith("crash") and self.asked[request.question] == 1:
            raise ZeroDivisionError("by nothing")
        if request.question.startswith("mumble"):
            return ["mumble"]
        return [f"answer to {request.question}"]


@pytest.fixture
def world():
    one = World()
    with one.server:
        yield one


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(batches, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(batch_results, "PAUSE", 0.02)


@pytest.fixture
def make(tmp_path):
    """Opens an asker on the test's folder, as a command does when it starts."""
    opened, budgets = [], []

    def open_asker(world, **options):
        store = AnswerStore(tmp_path / "answers.sqlite")
        check = lambda text: "it mumbles" if text == "mumble" else None  # noqa: E731
        # What was spent before counts; batches are booked at their own price, not at that of direct calls.
        budgets.append(Budget(price=Price(2.0, 20.0), spent=budgets[-1].summary() if budgets else None))
        endpoint = endpoint_at(world.server.url, max_tokens=10, attempts=2, key_env="NO_SUCH_KEY")
        client = EndpointClient(endpoint, store, budgets[-1], check)
        terms = {name: options.pop(name) for name in ("caps", "price") if name in options}
        asker = BatchAsker(client, endpoint._replace(**terms), tmp_path / "batches", **options)
        opened.extend((asker, client, store))
        return asker, client

    yield open_asker
    for one in opened:
        one.close()


def requests(*questions):
    return [EndpointRequest([{"role": "user", "content": question}], row=f"row {question}") for question in questions]


def run(asker, asked, moved=lambda done, submitted: None):
    asker.run(lambda: asked, moved)


def submitted(world):
    with openai.OpenAI(base_url=world.server.url, api_key="x") as client:
        return list(client.batches.list())


def test_answers_reach_the_store_under_the_keys_of_direct_questions(world, make):
    asker, client = make(world, price=Price(1.0, 2.0))
    asked = requests("one", "two", "one")
    seen = []
    run(asker, asked, lambda done, count: seen.append((done, count)))
    assert [client.kept(request).text for request in asked] == ["answer to one", "answer to two", "answer to one"]
    assert world.asked == {"one": 1, "two": 1}
    assert seen[-1] == (2, 2)
    (kept,) = client.store.answers(client.key(asked[0]))
    # 1 word in, 3 words out, in dollars a million tokens.
    assert (kept.row, kept.usd, kept.finish) == ("row one", pytest.approx(7e-6), "stop")
    assert client.budget.summary()["calls"] == 2


def test_what_is_kept_is_not_asked_again(world, make):
    run(make(world)[0], requests("one"))
    run(make(world)[0], requests("one", "two"))
    assert world.asked == {"one": 1, "two": 1}
    assert len(submitted(world)) == 2


def test_a_rejected_line_is_final_a_failed_one_is_asked_again_and_a_malformed_answer_up_to_the_attempts(world, make):
    asker, client = make(world)
    asked = requests("riddle", "crash once", "mumble", "fine")
    run(asker, asked)
    assert world.asked == {"riddle": 1, "crash once": 2, "mumble": 2, "fine": 1}
    reasons = [asker.reason(request) for request in asked]
    assert reasons[0].startswith("rejected: 400 can't read 'riddle'")
    assert reasons[1:] == [None, "malformed", None]
    assert len(client.store.answers(client.key(asked[2]))) == 2, "each was paid for, so each is kept"
    run(make(world)[0], asked)
    assert sum(world.asked.values()) == 6, "nothing is left to ask"


def test_batches_are_cut_by_requests_and_by_bytes(world, make):
    run(make(world, max_requests=2)[0], requests("a", "b", "c", "d", "e"))
    assert sorted(batch.request_counts.total for batch in submitted(world)) == [1, 2, 2]
    run(make(world, max_bytes=10)[0], requests("f", "g"))
    assert len(submitted(world)) == 5


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def killed_at(monkeypatch, owner, name, call, before=True):
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and before:
            raise Killed
        result = original(*args, **kwargs)
        if calls[0] == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("owner", "name", "call", "before"),
    [
        (Ledger, "save", 1, True),  # the upload is built
        (Ledger, "save", 1, False),  # it is written down, and was not sent
        (Ledger, "save", 2, True),  # it is at the endpoint, and its id is not written down
        (Ledger, "save", 2, False),
        (AnswerStore, "put", 2, True),  # the first of its answers is kept
        (AnswerStore, "put", 3, False),
        (Ledger, "save", 3, True),  # all are, and that is not written down
    ],
)
def test_a_command_killed_anywhere_pays_once(world, make, monkeypatch, owner, name, call, before, tmp_path):
    asked = requests("one", "two", "three")
    with monkeypatch.context() as patch:
        killed_at(patch, owner, name, call, before)
        with pytest.raises(Killed):
            run(make(world)[0], asked)
    asker, client = make(world)
    run(asker, asked)
    assert world.asked == {"one": 1, "two": 1, "three": 1}
    assert [kept.text for kept in client.store] == [f"answer to {question}" for question in ("one", "two", "three")]
    assert len(submitted(world)) == 1
    assert [path.suffix for path in (tmp_path / "batches").iterdir()] == [".json"], "nothing else is left behind"


def test_an_expired_batch_keeps_what_came_and_asks_for_the_rest_up_to_the_attempts(make):
    release = threading.Event()

    class Slow(World):
        def answer(self, request):
            if request.question == "slow":
                release.wait(2)
            return super().answer(request)

    world = Slow(batch_window=0.3)
    with world.server:
        asker, client = make(world)
        asked = requests("fast", "slow")
        run(asker, asked)
        release.set()
        assert client.kept(asked[0]).text == "answer to fast"
        assert [batch.status for batch in submitted(world)] == ["expired", "expired"]
        assert asker.reason(asked[1]).startswith("unanswered: This request could not be executed")


def test_a_cancelled_batch_ends_the_command_and_the_next_one_asks_for_the_rest(make):
    world = World(delay=0.5)
    with world.server, openai.OpenAI(base_url=world.server.url, api_key="x") as other:

        def cancel(done, count):
            for batch in submitted(world):
                if batch.status in ("validating", "in_progress"):
                    other.batches.cancel(batch.id)

        with pytest.raises(TeacherError, match="was cancelled"):
            run(make(world)[0], requests("one"), cancel)
        again, client = make(world)
        run(again, requests("one"))
        assert client.kept(requests("one")[0]).text == "answer to one"


class Between:
    """A proxy before a world's app that may fail calls or change what comes back.

    Attributes:
        failing: Methods of /v1/batches whose calls reach the app, while their replies are lost in a 502.
        changes: What becomes of the next downloads, one each: content to content, or None to break off midway.
    """

    def __init__(self, world):
        self.app, self.failing, self.changes = world.app, set(), []
        world.server = ServedEndpoint(self)

    async def __call__(self, scope, receive, send):
        content, status, headers = b"", 0, []

        async def hold(message):
            nonlocal content, status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], message["headers"]
            content += message.get("body", b"")

        await self.app(scope, receive, hold)
        said = len(content)
        if scope["path"] == "/v1/batches" and scope["method"] in self.failing:
            status, content, said = 502, b"", 0
        if scope["path"].endswith("/content") and self.changes:
            if (change := self.changes.pop(0)) is not None:
                content = change(content)
                said = len(content)
            else:
                content = content[: said // 2]
        headers = [(b"content-type", b"application/json"), (b"content-length", str(said).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def test_a_batch_whose_creation_broke_off_is_found_by_its_mark_and_not_made_again(make):
    world = World()
    Between(world).failing = {"POST"}
    with world.server:
        asker, client = make(world)
        run(asker, requests("one"))
        assert client.kept(requests("one")[0]).text == "answer to one"
        assert len(submitted(world)) == 1


def test_a_batch_that_can_not_even_be_looked_for_is_looked_for_by_the_next_start(make):
    world = World()
    between = Between(world)
    with world.server:
        between.failing = {"POST", "GET"}
        with pytest.raises(TeacherError, match="keeps failing"):
            run(make(world)[0], requests("one"))
        between.failing = set()
        asker, client = make(world)
        run(asker, requests("one"))
        assert client.kept(requests("one")[0]).text == "answer to one"
        assert len(submitted(world)) == 1


def test_a_result_file_that_ends_early_or_breaks_off_is_downloaded_again(make):
    world = World()
    between = Between(world)
    with world.server:
        between.changes = [lambda content: content[: content.index(b"\n") + 9], None]
        asker, client = make(world)
        run(asker, requests("one", "two", "three"))
        assert not between.changes
        assert world.asked == {"one": 1, "two": 1, "three": 1}
        assert [kept.attempt for kept in client.store] == [1, 1, 1]
        assert client.budget.summary()["calls"] == 3


def test_a_batch_whose_results_stay_incomplete_stays_open_and_is_not_paid_again(make, tmp_path):
    world = World()
    between = Between(world)
    with world.server:
        between.changes = [lambda content: content.splitlines(keepends=True)[0]] * batch_results.DOWNLOADS
        with pytest.raises(TeacherError, match="tell of 1 requests, the batch of 2") as caught:
            run(make(world)[0], requests("one", "two"))
        (noted,) = tmp_path.glob("batches/*.json")
        assert str(noted) in caught.value.hint
        _, client = make(world)
        assert client.store.count() == 1, "what came is kept"
        run(make(world)[0], requests("one", "two"))
        assert [kept.attempt for kept in client.store] == [1, 1]
        assert len(submitted(world)) == 1


def test_a_clock_that_was_ahead_when_an_answer_was_kept_makes_no_endless_batches(world, make, monkeypatch):
    start, calls = time.time(), Counter()

    def ahead():
        calls["all"] += 1
        return start + 3600 * calls["all"]

    def moved(done, count):
        assert count <= 2, "attempts=2"

    monkeypatch.setattr(time, "time", ahead)  # the store's; the ledger's own is right
    asker, client = make(world)
    run(asker, requests("mumble"), moved)
    assert asker.reason(requests("mumble")[0]) == "malformed"
    assert len(client.store.answers(client.key(requests("mumble")[0]))) == 2


def test_a_batch_is_found_by_its_mark_whatever_the_clock_said_when_it_was_sent(world, make, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        killed_at(patch, Ledger, "save", 2, before=True)
        with pytest.raises(Killed):
            run(make(world)[0], requests("one"))
    (noted,) = tmp_path.glob("batches/*.json")
    submission = json.loads(noted.read_text())
    noted.write_text(json.dumps({**submission, "created": submission["created"] + 86_400}))
    with openai.OpenAI(base_url=world.server.url, api_key="x") as other:
        file = other.files.create(file=("of someone else.jsonl", b"{}"), purpose="batch")
        other.batches.create(input_file_id=file.id, endpoint=batches.CHAT, completion_window="24h")
    run(make(world)[0], requests("one"))
    assert len(submitted(world)) == 2
    assert world.asked == {"one": 1}


def test_a_cap_on_calls_submits_up_to_it_and_holds_over_restarts(world, make):
    caps = Caps(max_calls=2)
    for _ in range(2):
        with pytest.raises(BudgetError, match="2 calls is used up"):
            run(make(world, caps=caps)[0], requests("a", "b", "c"))
    assert sum(world.asked.values()) == 2
    run(make(world, caps=Caps(max_calls=3))[0], requests("a", "b", "c"))
    assert sum(world.asked.values()) == 3


def test_a_cap_on_dollars_counts_each_request_with_the_most_it_can_cost(world, make):
    # A byte and 16 around it are 17 prompt tokens at most: 17 × $1 + 10 × $10 a million = $0.000117; a word in and
    # three out cost $0.000031. So one fits into $0.00015, then another ($0.000031 + $0.000117), and then no third.
    terms = {"price": Price(1.0, 10.0), "caps": Caps(max_usd=0.00015)}
    with pytest.raises(BudgetError, match="could cost"):
        run(make(world, **terms)[0], requests("a", "b", "c"))
    assert [batch.request_counts.total for batch in submitted(world)] == [1, 1]


def test_what_was_spent_otherwise_counts_against_the_caps_of_batches(world, make):
    asker, client = make(world, caps=Caps(max_calls=2))
    client.budget.book(1, 1, None)
    with pytest.raises(BudgetError, match="2 calls is used up"):
        run(asker, requests("a", "b"))
    assert sum(world.asked.values()) == 1


def test_a_reply_that_counts_no_tokens_is_booked_with_the_most_it_can_cost(make):
    def uncounted(content):
        lines = [json.loads(line) for line in content.splitlines()]
        for line in lines:
            del line["response"]["body"]["usage"]
        return "".join(f"{json.dumps(line)}\n" for line in lines).encode()

    world = World()
    between = Between(world)
    between.changes = [uncounted] * 9
    # $0.000117 each at most, as above: one fits into $0.00015, and then no other.
    terms = {"price": Price(1.0, 10.0), "caps": Caps(max_usd=0.00015)}
    with world.server:
        asker, client = make(world, **terms)
        with pytest.raises(BudgetError, match="could cost"):
            run(asker, requests("a", "b", "c"))
        assert sum(world.asked.values()) == 1
        assert [kept.usd for kept in client.store] == [pytest.approx(0.000117)]


def test_an_endpoint_without_batches_is_told_apart(make):
    with ServedEndpoint(Starlette()) as server:
        world = World()
        world.server = server
        with pytest.raises(TeacherError, match="has no batches") as caught:
            run(make(world)[0], requests("a"))
    assert "batch=false" in caught.value.hint


def test_a_batch_the_endpoint_forgot_is_an_error_that_names_its_file(world, make, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        killed_at(patch, Ledger, "save", 2, before=False)
        with pytest.raises(Killed):
            run(make(world)[0], requests("a"))
    other = World()
    with other.server, pytest.raises(TeacherError, match="does not know batch") as caught:
        run(make(other)[0], requests("a"))
    (noted,) = tmp_path.glob("batches/*.json")
    assert str(noted) in caught.value.hint


def test_a_model_that_wants_the_new_name_of_the_limit_gets_it_in_the_next_batch(make):
    class Picky(World):
        def answer(self, request):
            self.asked[request.question] += 1
            if self.asked[request.question] == 1:
                raise DataError("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
            return ["fine"]

    world = Picky()
    with world.server, openai.OpenAI(base_url=world.server.url, api_key="x") as looking:
        asker, client = make(world)
        run(asker, requests("one"))
        assert client.kept(requests("one")[0]).text == "fine"
        second, first = (json.loads(looking.files.content(one.input_file_id).text) for one in submitted(world))
    assert (first["body"]["max_tokens"], second["body"]["max_completion_tokens"]) == (10, 10)
    assert "max_tokens" not in second["body"]


def test_the_key_stands_in_no_file_and_no_error(make, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_SUCH_KEY", "sk-verysecret")
    world = World(api_key="sk-verysecret")
    with world.server:
        run(make(world)[0], requests("one"))
        monkeypatch.setenv("NO_SUCH_KEY", "sk-otherwise")
        with pytest.raises(TeacherError) as caught:
            run(make(world)[0], requests("two"))
    assert "sk-otherwise" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-verysecret" not in path.read_bytes()
