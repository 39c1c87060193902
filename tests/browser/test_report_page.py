"""The report page as people meet it: in a browser."""

import json
import re
import time

import httpx
import pytest

from prism_cli.local_server import LocalServer
from prism_cli.report.follow import create_app
from prism_cli.report.page import render, write_report
from prism_cli.rewards.accuracy import is_correct
from prism_cli.stages.view import version
from tests.unit.test_report import (
    ATTRIBUTION,
    GRAMMAR,
    HOSTILE,
    STUDY,
    SUMMARY,
    add_metrics,
    add_rollouts,
    add_step,
    build_gallery,
    build_run,
    picture,
    response,
)

SHOWN = "article:visible"
RESPONSES = "#responses"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The page of a pipeline with everything on it."""
    run = build_run(tmp_path_factory.mktemp("page") / "demo")
    folder = build_gallery(run.parent / "other")
    for path in folder.iterdir():
        if path.name not in ("run.json", "recipe.yaml", "summary.json"):
            (run / "eval" / path.name).write_bytes(path.read_bytes())
    (run / "eval" / "summary.json").write_text(json.dumps(SUMMARY | {"attribution": ATTRIBUTION}))
    return write_report(run, parse=GRAMMAR.parse, is_correct=is_correct)


def choose(page, section: str, **values: str) -> None:
    for name, value in values.items():
        page.select_option(f"{section} select[name={name}]", value)


def questions(page, section: str = RESPONSES) -> list[str]:
    return page.locator(f"{section} {SHOWN} .question").all_text_contents()


def test_filters_narrow_down_what_is_shown(pipeline, open_page):
    page = open_page(pipeline)
    assert len(questions(page)) == 4
    choose(page, RESPONSES, run="rl", verdict="wrong")
    assert questions(page) == ["Which colour, 1?"]
    assert page.inner_text(f"{RESPONSES} .filters output") == "1 of 4"
    choose(page, RESPONSES, verdict="gained")
    assert sorted(questions(page)) == ["Which colour, 0?", "Which colour, 2?"]
    choose(page, RESPONSES, run="sft", verdict="malformed")
    assert questions(page) == ["Which colour, 2?"]
    choose(page, RESPONSES, run="", verdict="", cause="perception")
    assert questions(page) == ["Which colour, 1?"]
    choose(page, RESPONSES, cause="", source="a")
    assert sorted(questions(page)) == ["Which colour, 0?", "Which colour, 2?"]
    page.fill(f"{RESPONSES} [name=q]", "colour, 2")
    assert questions(page) == ["Which colour, 2?"]
    # What was chosen outlives a reload, and can be passed on.
    page.reload()
    assert questions(page) == ["Which colour, 2?"]
    assert page.input_value(f"{RESPONSES} [name=source]") == "a"


def test_it_can_be_used_without_a_mouse(pipeline, open_page):
    page = open_page(pipeline)
    page.keyboard.press("/")
    page.click(f"{RESPONSES} [name=q]")
    page.keyboard.type("colour, 3")
    assert questions(page) == ["Which colour, 3?"]
    page.keyboard.press("Escape")
    assert len(questions(page)) == 4
    page.evaluate("document.querySelector('#responses').scrollIntoView()")
    seen = []
    for _ in range(2):
        page.keyboard.press("j")
        seen.append(page.evaluate("document.activeElement.querySelector('.question').textContent"))
    page.keyboard.press("k")
    assert seen == questions(page)[:2]
    assert page.evaluate("document.activeElement.querySelector('.question').textContent") == seen[0]


def test_steps_of_rollouts_are_turned_and_searched(pipeline, open_page):
    page = open_page(pipeline)
    assert questions(page, "#rollouts-1") == ["What is at b2 in step 50?"]
    page.click("#rollouts-1 [aria-label='Previous kept step']")
    assert questions(page, "#rollouts-1") == ["What is at b2 in step 25?"]
    page.fill("#rollouts-1 [name=q]", "blue circle")
    assert len(questions(page, "#rollouts-1")) == 3  # all steps at once
    page.fill("#rollouts-1 [name=q]", "")
    assert questions(page, "#rollouts-1") == ["What is at b2 in step 25?"]


def test_more_than_a_dozen_cards_come_when_asked_for(open_page, tmp_path):
    step = add_step(tmp_path, "align", 0, None)
    rows = [{"question": f"q{i}", "before": {"text": "x"}} for i in range(30)]
    (step / "showcase.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = open_page(write_report(tmp_path))
    assert len(questions(page, "#showcase-1")) == 12
    page.click("#showcase-1 .more")
    page.click("#showcase-1 .more")
    assert len(questions(page, "#showcase-1")) == 30
    assert not page.is_visible("#showcase-1 .more")


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(pipeline, open_page, dark):
    page = open_page(pipeline, dark=dark)

    def brightness(what: str, where: str) -> float:
        colour = page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    paper = brightness("backgroundColor", "body")
    assert (paper < 60) == dark
    for where in ("h1", "h2", ".question", "td", ".text", ".tick"):
        what = "fill" if where == ".tick" else "color"
        assert abs(brightness(what, where) - paper) > 80, where


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_wider_than_the_screen(pipeline, open_page, width):
    page = open_page(pipeline, width)
    for details in page.locator("details").all():
        details.evaluate("one => one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_wide = """[...document.querySelectorAll('main *, header *')].filter(
        one => !one.closest('.scroll, .sides, pre') && one.getBoundingClientRect().right > innerWidth + 1
    ).map(one => one.outerHTML)"""
    assert page.evaluate(too_wide) == []


def test_values_are_shown_under_the_pointer(pipeline, open_page):
    page = open_page(pipeline)
    plot = page.locator(".chart svg").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + 50)
    assert page.inner_text(".tip").splitlines()[0] == "step 700"


def test_hostile_text_is_inert(open_page, tmp_path):
    texts = [
        HOSTILE,
        "a\u2028b\u2029</script>",
        "<img src=https://example.org/x onerror=alert(3)>",
        "<style>*{display:none}",
    ]
    hostile = " ".join(texts)
    step = add_step(tmp_path, "align", 0, hostile, id=hostile)
    add_metrics(step, [{"step": s, hostile: 1.0, f"reward/{hostile}": 2.0} for s in (1, 2)])
    row = {
        "question": hostile,
        "answer": hostile,
        "teacher": hostile,
        "before": {"text": hostile, "scores": {hostile: 1}},
    }
    (step / "showcase.jsonl").write_text(json.dumps(row) + "\n")
    add_rollouts(step, [(hostile, [("", response(hostile, "x", "y"), {hostile: 1.0})])], source=hostile)
    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    summary = {"runs": [{"id": hostile, "metrics": {hostile: cell, "accuracy/greedy": cell}}], "pairs": []}
    found = [{"run": hostile, "decoding": hostile, "source": hostile, "wrong": 3, "causes": {hostile: cell}}]
    (step / "summary.json").write_text(json.dumps(summary | {"attribution": found}))
    (step / "study.json").write_text(json.dumps(STUDY | {"failed": {hostile: hostile}}))
    page = open_page(write_report(tmp_path, title=hostile, parse=GRAMMAR.parse, is_correct=is_correct))
    page.mouse.move(*(page.locator(".chart svg").first.bounding_box()[side] + 60 for side in ("x", "y")))
    page.fill("#showcase-1 [name=q]", "alert(1)")
    assert questions(page, "#showcase-1")[0].startswith("</script><script>alert(1)")
    page.reload()
    # Tags in texts make no elements: only what the page itself has is there.
    assert page.locator("script").count() == 1
    assert page.locator("body style, body img:not([src^='data:image/png;base64,']), [onerror]").count() == 0
    page.wait_for_timeout(200)


def test_a_failed_arm_is_shown_in_its_study(open_page, tmp_path):
    study = add_step(tmp_path, "compare", 0, None)
    (study / "study.json").write_text(json.dumps(STUDY | {"failed": {"seed 1, rl": "out of memory"}}))
    page = open_page(write_report(study), 390)
    assert page.inner_text("#arms .notes li") == "seed 1, rl out of memory"
    assert page.locator("#arms tr.failed").inner_text().split() == ["seed", "1,", "rl", "failed"]
    assert page.locator("#arms .forest .bar:not(.ends)").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") == 390


# Following a run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def followed(tmp_path):
    """A run in progress and the address of the page that follows it."""
    step = add_step(tmp_path, "rl", 0, None, status="running")
    add_rollouts(step, [(1, [("", response("a", "b", "red"), {"accuracy": 0.0})])])
    app = create_app(
        lambda: version(step), lambda now: render(step, parse=GRAMMAR.parse, is_correct=is_correct, live=now)
    )
    with LocalServer(app) as server:
        yield step, server.address


def test_a_page_that_follows_a_run_keeps_what_was_chosen(followed, open_page):
    step, address = followed
    page = open_page(address)
    page.select_option("#rollouts-1 [name=verdict]", "wrong")
    page.fill("#rollouts-1 [name=q]", "b2")
    page.evaluate("scrollTo(0, 120)")
    page.click("#recipe-1 summary")
    scroll = page.evaluate("scrollY")
    assert len(questions(page, "#rollouts-1")) == 1
    looks = [("", response("a", "b", answer), {"accuracy": float(answer == "blue")}) for answer in ("red", "blue")]
    add_rollouts(step, [(number, looks) for number in (1, 2, 3)], images=[picture()])
    add_metrics(step, [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)])
    page.wait_for_selector("#curves", timeout=15_000)
    assert page.input_value("#rollouts-1 [name=verdict]") == "wrong"
    assert page.input_value("#rollouts-1 [name=q]") == "b2"
    assert len(questions(page, "#rollouts-1")) == 3
    assert page.evaluate("document.querySelector('#recipe-1').open")
    assert page.evaluate("scrollY") == pytest.approx(scroll, abs=2)


def test_other_names_than_this_machines_are_refused(followed):
    _, address = followed
    assert httpx.get(address).status_code == 200
    for path in ("", "version"):
        refused = httpx.get(address + path, headers={"Host": "rebound.example"})
        assert (refused.status_code, "rl" in refused.text) == (400, False)


def test_a_page_is_made_once_for_each_state_of_the_run(followed):
    step, address = followed
    first = httpx.get(f"{address}version").json()["version"]
    assert f'data-version="{first}"' in httpx.get(address).text
    time.sleep(0.01)
    add_metrics(step, [{"step": 1, "loss": 1.0}])
    assert httpx.get(f"{address}version").json()["version"] != first
