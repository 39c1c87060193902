import base64
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from prism_cli.errors import CheckpointError
from prism_cli.report import summary_table, write_report
from prism_cli.report.causes import causes
from prism_cli.report.curves import plots
from prism_cli.report.drawing import ticks
from prism_cli.report.folder import read_steps
from prism_cli.report.gallery import chosen
from prism_cli.report.pictures import forest, tiles
from prism_cli.report.progress import progress
from prism_cli.report.quantities import clear_winner, metric, spread
from prism_cli.report.tables import Cell, comparison, run_before
from prism_cli.report.verdicts import headlines, verdicts
from prism_cli.responses import Grammar, Part
from prism_cli.rewards.accuracy import is_correct

GRAMMAR = Grammar({"perception": Part(("caption",), 0.5), "reasoning": Part(("think", "answer"), 0.5)})
HOSTILE = "</script><script>alert(1)</script>\"><img src=x onerror=alert(2)>{{ 7*7 }}'"


def picture() -> str:
    image = Image.new("RGB", (48, 48), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    draw.rectangle((3, 3, 13, 13), fill=(200, 40, 40))
    draw.ellipse((19, 19, 29, 29), fill=(50, 90, 200))
    draw.polygon([(35, 45), (45, 45), (40, 35)], fill=(40, 160, 70))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def add_step(run: Path, stage: str, minute: int, source: str | None, **manifest) -> Path:
    folder = run / stage
    folder.mkdir(parents=True)
    started = f"2026-11-23T10:{minute:02d}:00+00:00"
    versions = {"python": "3.12.3", "prism-cli": "0.1.0", "torch": "2.11.0", "transformers": "5.17.0", "trl": "1.16.0"}
    whole = {"stage": stage, "id": stage, "name": run.name, "status": "finished", "created": started, "seconds": 95.2}
    whole |= {"seed": 7, "versions": versions, "from": {"run": source, "checkpoint": None} if source else None}
    (folder / "run.json").write_text(json.dumps(whole | manifest))
    (folder / "recipe.yaml").write_text(f"stage: {stage}\nmodel: tiny\nseed: 7\ntrainer:\n  learning_rate: 1.0e-6\n")
    return folder


def add_metrics(folder: Path, rows: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_rollouts(folder: Path, steps: list, **prompt) -> None:
    """A line a (step, [(mark, text, rewards)])."""
    lines = []
    for step, rollouts in steps:
        said = [
            {"text": text, "problem": GRAMMAR.parse(text).problem, "length": 31, "rewards": rewards}
            for _, text, rewards in rollouts
        ]
        asked = {
            "question": f"What is at b2 in step {step}?",
            "answers": ["blue circle", "circle"],
            "images": [picture()],
        }
        lines.append(json.dumps({"step": step, "prompts": [{**asked, "rollouts": said, **prompt}]}) + "\n")
    (folder / "rollouts.jsonl").write_text("".join(lines))


def response(caption: str, think: str, answer: str) -> str:
    return GRAMMAR.render({"caption": caption, "think": think, "answer": answer})


SUMMARY = {
    "settings": {"level": 0.95, "samples": 8, "temperature": 1.0},
    "runs": [
        {"id": name, "path": f"runs/demo/{name}", "stage": name, "metrics": {
            "accuracy/greedy": {"value": greedy, "low": greedy - 0.03, "high": greedy + 0.03, "n": 512},
            "accuracy/sampled": {"value": sampled, "low": sampled - 0.021, "high": sampled + 0.021, "n": 512},
            "well_formed/sampled": {"value": 0.995, "low": 0.981, "high": 0.999, "n": 512},
            "perception/sampled": {"value": seen, "low": seen - 0.02, "high": seen + 0.02, "n": 512},
            "length/sampled": {"value": 41.2, "low": 40.1, "high": 42.3, "n": 512},
            "teacher_logprob": {"value": -0.412, "low": -0.43, "high": -0.394, "n": 512},
        }}
        for name, greedy, sampled, seen in [
            ("sft", 0.54, 0.38, 0.44), ("align", 0.55, 0.40, 0.61), ("rl", 0.73, 0.60, 0.63),
        ]
    ],
    "pairs": [
        {"a": "align", "b": "rl", "metric": "accuracy/sampled", "difference": 0.203, "low": 0.178, "high": 0.229},
        {"a": "sft", "b": "align", "metric": "perception/sampled", "difference": 0.17, "low": 0.14, "high": 0.2},
        {"a": "sft", "b": "align", "metric": "accuracy/greedy", "difference": 0.01, "low": -0.021, "high": 0.041},
        {"a": "sft", "b": "rl", "metric": "caption_distance/sampled", "difference": -0.04, "low": -0.06, "high": -0.02},
    ],
}  # fmt: skip


def build_run(run: Path) -> Path:
    """A finished pipeline's folder: sft, align, rl, eval."""
    noise = random.Random(3)
    sft = add_step(run, "sft", 0, None)
    add_metrics(sft, [
        {"step": s, "seconds": s / 4, "loss": 2.2 * math.exp(-s / 150) + 0.5 + noise.gauss(0, 0.03),
         "mean_token_accuracy": 0.9 - 0.6 * math.exp(-s / 200), "learning_rate": 4e-3 * (1 - s / 700), "grad_norm": 1.0}
        for s in range(10, 701, 10)
    ] + [{"step": s, "eval/loss": 2.2 * math.exp(-s / 150) + 0.55} for s in (200, 400, 600)])  # fmt: skip
    align = add_step(run, "align", 3, "runs/demo/sft", seconds=3712.0)
    add_metrics(align, [
        {"step": s, "loss": noise.gauss(0, 0.02), "reward": 0.1 * s / 30 + noise.gauss(0, 0.1),
         "discriminator/accuracy/perception": 0.66 - 0.003 * s + noise.gauss(0, 0.02),
         "discriminator/accuracy/reasoning": 0.76 - 0.004 * s + noise.gauss(0, 0.02),
         "discriminator/loss/perception": 0.62, "discriminator/loss/reasoning": 0.55 + 0.003 * s,
         "discriminator/margin/perception": 0.4, "responses/malformed_fraction": 0.08 * math.exp(-s / 10),
         "completions/mean_length": 38 + s / 10}
        for s in range(1, 31)
    ])  # fmt: skip
    (align / "teacher.json").write_text(
        json.dumps({"calls": 1920, "cached": 412, "prompt_tokens": 238412, "model": "oracle"})
    )
    good = response("a1: red square; b2: blue circle; c3: green triangle", "b2 holds a blue circle", "blue circle")
    wrong = response("a1: red square; b2: blue square", "b2 holds a blue square", "blue square")
    rows = [
        {"question": "What is at b2?", "answer": "blue circle", "image": picture(), "teacher": good,
         "before": {"text": wrong, "scores": {"perception": -0.31, "reasoning": 0.12}},
         "after": {"text": good, "scores": {"perception": 0.44, "reasoning": 0.2}}},
        {"question": "What is right of b1?", "answer": "blue circle", "image": None, "teacher": good,
         "before": {"text": "<caption> a grid a grid a grid", "scores": {"perception": None, "reasoning": None}},
         "after": {"text": good, "scores": {"perception": 0.5, "reasoning": 0.1}}},
    ]  # fmt: skip
    (align / "showcase.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rl = add_step(run, "rl", 8, "runs/demo/align")
    add_metrics(rl, [
        {"step": s, "loss": noise.gauss(0, 0.01), "reward": 0.5 + 0.2 * s / 80 + noise.gauss(0, 0.03),
         "accuracy": 0.4 + 0.2 * s / 80 + noise.gauss(0, 0.03), "completions/mean_length": 41.0}
        for s in range(1, 81)
    ])  # fmt: skip
    looks = [
        ("well", good, {"accuracy": 1.0, "format": 1.0}),
        ("ill", "<caption> a grid", {"accuracy": 0.0, "format": 0.0}),
    ]
    add_rollouts(rl, [(step, looks) for step in (1, 25, 50)])
    evaluation = add_step(run, "eval", 12, "runs/demo/rl")
    (evaluation / "summary.json").write_text(json.dumps(SUMMARY))
    return run


class Page(HTMLParser):
    """What a browser would make of the page: elements with their attributes, scripts apart from visible text."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.scripts, self.pieces, self._inside = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


def words(page: Page) -> str:
    """Its text, one blank between any two pieces."""
    return " ".join(" ".join(page.pieces).split())


def read(path: Path) -> Page:
    return Page(path)


def test_a_finished_pipeline_is_told_in_order(tmp_path):
    path = write_report(build_run(tmp_path / "demo"), parse=GRAMMAR.parse, is_correct=is_correct)
    assert path == tmp_path / "demo" / "report.html"
    text = read(path).text
    headings = [
        "Stages compared",
        "What it showed",
        "Distance to the teacher",
        "What was done",
        "Teacher",
        "Learning curves",
        "Before and after",
        "Rollouts",
    ]
    text = text[text.index("Rollouts") + 1 :]  # behind the links to the sections
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    for said in ("1 h 1 min", "torch 2.11.0", "learning_rate: 1.0e-6", "demo/sft", "238 412", "+0.44", "−0.31"):
        assert said in text
    assert text.index("trainer:") < text.index("Learning curves")


def test_responses_are_split_and_judged_by_the_given_callables(tmp_path):
    run = build_run(tmp_path / "demo")
    text = (
        read(write_report(run, parse=GRAMMAR.parse, is_correct=is_correct))
        .text.partition("Sampled before and after")[2]
        .partition("What is at b2?")[2]
        .partition("What the policy wrote")[0]
    )
    assert "a1: red square" in text
    assert "<caption> a1" not in text
    # Teacher and after on both cards, before on the first: five well-formed, of which before is wrong.
    assert (text.count("well-formed") - text.count("not well-formed"), text.count("wrong")) == (5, 1)
    assert "not well-formed: </caption> stands 0 times" in text
    raw = read(write_report(run)).text
    assert "<caption> a1: red square; b2: blue square </caption>" in raw
    assert "wrong" not in raw


def test_the_page_asks_nothing_of_the_network(tmp_path):
    page = read(write_report(build_run(tmp_path / "demo")))
    assert [attrs["src"][:10] for attrs in page.all("img")] == ["data:image"] * 4
    assert not page.all("link")
    assert all("src" not in attrs for attrs in page.all("script"))
    allowed = page.all("meta")[1]["content"]
    assert allowed.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "connect-src" not in allowed
    assert len(page.scripts) == 1


def test_hostile_text_stays_text_everywhere(tmp_path):
    step = add_step(tmp_path / "demo", "align", 0, HOSTILE, status=HOSTILE, seed=HOSTILE, versions={"torch": HOSTILE})
    (step / "recipe.yaml").write_text(f"model: {HOSTILE}\n")
    add_metrics(step, [{"step": 1, HOSTILE: 1.0, f"reward/{HOSTILE}": 2.0}])
    (step / "teacher.json").write_text(json.dumps({HOSTILE: 1, "model": HOSTILE}))
    hostile = {"text": HOSTILE, "scores": {HOSTILE: 1.0}}
    row = {"question": HOSTILE, "answer": HOSTILE, "image": f'data:image/png;base64,AA=="{HOSTILE}', "teacher": HOSTILE}
    (step / "showcase.jsonl").write_text(json.dumps(row | {"before": hostile, "after": hostile}) + "\nbroken\n")
    looks = [("hostile", text, {HOSTILE: 1.0}) for text in (HOSTILE, response(HOSTILE, HOSTILE, HOSTILE))]
    hostile_prompt = {"question": HOSTILE, "answers": [HOSTILE], "images": [HOSTILE], "teacher": HOSTILE}
    add_rollouts(step, [(HOSTILE, looks), (2, looks)], **hostile_prompt)
    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "n": HOSTILE}
    pair = {"a": HOSTILE, "b": HOSTILE, "metric": HOSTILE, "difference": 1, "low": 0.5, "high": 2}
    runs = [{"id": HOSTILE, "metrics": {HOSTILE: cell}}]
    summary = {"settings": {HOSTILE: HOSTILE}, "runs": runs, "pairs": [pair]}
    (step / "summary.json").write_text(json.dumps(summary))
    page = read(write_report(tmp_path / "demo", title=HOSTILE, parse=GRAMMAR.parse, is_correct=is_correct))
    assert not page.all("img")
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count("alert(1)") >= 35
    assert "{{ 7*7 }}" in page.text  # nothing is rendered twice
    names = [curve["name"] for plot in plotted(page) for curve in plot["curves"]]
    assert names == [f"reward/{HOSTILE}", HOSTILE]
    assert len(page.scripts) == 1
    assert [attrs["data-step"] for attrs in page.all("div") if "data-step" in attrs] == [HOSTILE, "2"]


def plotted(page: Page) -> list[dict]:
    """The numbers behind each plot, as the script reads them."""
    return [json.loads(attrs["data-plot"]) for attrs in page.all("svg")]


@pytest.mark.parametrize(
    "image", ["https://example.org/x.png", "data:image/svg+xml;base64,AAAA", "data:image/png;base64,A A", 5]
)
def test_a_picture_that_is_not_inline_data_is_dropped_with_a_note(tmp_path, image):
    step = add_step(tmp_path, "align", 0, None)
    (step / "showcase.jsonl").write_text(json.dumps({"question": "q", "image": image}))
    page = read(write_report(tmp_path))
    assert not page.all("img")
    assert "Picture left out" in page.text
    assert "a picture that is not inline PNG or JPEG data is left out" in page.text


def test_a_run_in_progress_shows_what_there_is(tmp_path):
    step = tmp_path / "sft"
    step.mkdir()
    (step / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    page = read(write_report(step))
    assert "Learning curves" in page.text
    assert "can't be read" not in page.text  # the last line is still being written
    ((curve,),) = [plot["curves"] for plot in plotted(page)]
    assert curve == {"name": "loss", "x": [1, 2], "y": [2.0, None]}
    (step / "metrics.jsonl").write_text('{"step": 1, "lo\n{"step": 2, "loss": 2.0}\n')
    assert "metrics.jsonl line 1 can't be read" in read(write_report(step)).text


def test_steps_stand_in_the_order_they_were_made(tmp_path):
    add_step(tmp_path, "a_later", 9, None)
    add_step(tmp_path, "b_sooner", 1, None)
    text = read(write_report(tmp_path)).text
    assert text.index("b_sooner") < text.index("a_later")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path)


def test_verdicts_never_claim_beyond_the_interval():
    raised, seen, noise, lowered = verdicts(SUMMARY)
    assert raised.text == "rl raised sampled accuracy by 20.3 points against align (95 % interval 17.8 to 22.9)."
    assert (raised.kind, seen.kind, noise.kind, lowered.kind) == ("better", "better", "noise", "better")
    assert noise.text == (
        "align changed greedy accuracy by 1.0 points against sft (95 % interval −2.1 to 4.1): within noise."
    )
    assert lowered.text == "rl lowered sampled caption distance by 0.040 against sft (95 % interval 0.020 to 0.060)."
    touching = {
        "pairs": [{"a": "x", "b": "y", "metric": "accuracy/greedy", "difference": 0.1, "low": 0.0, "high": 0.2}]
    }
    assert next(verdicts(touching)).kind == "noise"
    one_question = {
        "pairs": [{"a": "x", "b": "y", "metric": "length/greedy", "difference": 1, "low": -math.inf, "high": math.inf}]
    }
    assert next(verdicts(one_question)).text == "y against x: greedy length can't be compared (no finite interval)."
    worse = {
        "pairs": [{"a": "x", "b": "y", "metric": "accuracy/greedy", "difference": -0.1, "low": -0.2, "high": -0.05}]
    }
    assert next(verdicts(worse))[:2] == (
        "worse",
        "y lowered greedy accuracy by 10.0 points against x (95 % interval 5.0 to 20.0).",
    )


def test_a_winner_needs_an_interval_apart_from_all_others():
    high, middle, low = ({"value": v, "low": v - 0.02, "high": v + 0.02} for v in (0.6, 0.57, 0.4))
    assert clear_winner(metric("accuracy/greedy"), [low, high]) == 1
    assert clear_winner(metric("accuracy/greedy"), [low, high, middle]) is None
    assert clear_winner(metric("caption_distance/greedy"), [low, high, middle]) == 0
    assert clear_winner(metric("length/greedy"), [low, high]) is None
    assert clear_winner(metric("accuracy/greedy"), [high]) is None
    assert clear_winner(metric("accuracy/greedy"), [low, high, {"value": 0.9}]) is None


def test_lopsided_intervals_are_written_out():
    shown = metric("accuracy/sampled")
    assert spread(shown, {"value": 0.5, "low": 0.479, "high": 0.521}) == "±2.1"
    assert spread(shown, {"value": 0.995, "low": 0.981, "high": 0.999}) == "98.1 to 99.9"
    assert spread(shown, {"value": 0.5, "low": -math.inf, "high": math.inf}) == ""


def test_malformed_fractions_are_drawn_as_well_formed_shares():
    (plot,) = plots([{"step": 1, "responses/malformed_fraction": 0.25}])
    assert (plot.title, plot.curves[0].y) == ("Well-formed share", [0.75])


def test_what_belongs_to_no_known_plot_is_folded_by_room_and_evaluation_is_marked():
    made = plots(
        [{"step": 1, "loss": 1, "eval/loss": 2, "clip/low": 3}, {"step": 2, "loss": 1, "eval/loss": 2, "clip/low": 3}]
    )
    assert [(plot.title, plot.folded) for plot in made] == [("Loss", False), ("clip", True)]
    assert [curve.held_out for curve in made[0].curves] == [False, True]


def test_the_terminal_table_groups_greedy_then_sampled():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary_table(SUMMARY))
    text = console.export_text()
    assert re.search(r"accuracy, greedy +\S+ ±\S+ +\S+ ±\S+ +73.0 ±3.0", text)
    assert re.search(r"teacher log-probability .* −0.412 ±0.018", text)
    assert "512 questions" in text
    table = summary_table(SUMMARY)
    rows = dict(zip(table.columns[0].cells, table.columns[3].cells, strict=True))
    assert rows["accuracy[dim], greedy[/dim]"] == "[bold]73.0 ±3.0[/bold]"
    assert rows["perception[dim], sampled[/dim]"] == "63.0 ±2.0"  # overlaps align's 61.0 ±2.0


def test_names_from_a_summary_are_no_markup():
    runs = [{"id": "[bold]x[/bold]", "metrics": {"odd[red]/greedy": {"value": 1.0}}}]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary_table({"runs": runs}))
    assert "[bold]x[/bold]" in console.export_text()


def test_warnings_stand_on_the_page_with_their_cure(tmp_path):
    folder = add_step(tmp_path, "align", 0, None)
    warning = {"step": 20, "kind": "saturated/perception", "cause": "the discriminator always knows", "cure": HOSTILE}
    (folder / "warnings.jsonl").write_text(json.dumps(warning) + "\n")
    page = write_report(tmp_path).read_text()
    assert "step 20: the discriminator always knows." in page
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_measured_drift_is_a_table_like_any_other(tmp_path):
    folder = add_step(tmp_path, "drift", 0, None)
    cells = {"drift/perception": {"value": 0.731, "low": 0.7, "high": 0.76, "n": 64}}
    (folder / "drift.json").write_text(json.dumps({"runs": [{"id": "sft", "metrics": cells}]}))
    page = write_report(tmp_path).read_text()
    assert "drift perception" in page
    assert "0.731" in page


def test_less_drift_is_better():
    near, far = {"value": 0.6, "low": 0.55, "high": 0.65}, {"value": 0.8, "low": 0.75, "high": 0.85}
    assert clear_winner(metric("drift/perception"), [far, near]) == 1


def test_verdicts_beside_accuracy_against_the_run_before_are_folded(tmp_path):
    text = read(write_report(build_run(tmp_path / "demo"))).text
    places = [
        text.index(said)
        for said in (
            "rl raised sampled accuracy by 20.3 points against align",
            "align changed greedy accuracy",
            "Other comparisons: 2",
            "raised sampled perception",
            "caption distance by 0.040 against sft",
        )
    ]
    assert places == sorted(places)


def test_of_many_runs_each_is_said_to_have_gained_before_any_is_said_twice():
    runs = [{"id": f"r{i}", "metrics": {}} for i in range(9)]
    pairs = [
        {"a": f"r{a}", "b": f"r{b}", "metric": f"accuracy/{how}", "difference": 0.1, "low": 0.05, "high": 0.2}
        for how in ("greedy", "sampled") for a in range(9) for b in range(a + 1, 9)
    ]  # fmt: skip
    summary = {"runs": runs, "pairs": pairs}
    before = {f"r{i}": "r0" for i in range(1, 9)} | {"r2": "r1"}
    said = headlines(summary, before, list(verdicts(summary)))
    assert [(one.metric, one.runs) for one in said] == [
        ("accuracy/sampled", (before[f"r{i}"], f"r{i}")) for i in range(1, 9)
    ]


# Rollouts -------------------------------------------------------------------------------------------------------------


def marks(page: Page) -> list[str]:
    """What stands after "Rollouts", one blank between."""
    return " ".join(" ".join(page.pieces).split()).partition("Rollouts")[2]


def test_rollouts_are_turned_step_by_step_and_split_into_their_parts(tmp_path):
    run = build_run(tmp_path / "demo")
    page = read(write_report(run, parse=GRAMMAR.parse, is_correct=is_correct))
    assert [attrs["data-step"] for attrs in page.all("div") if "data-step" in attrs] == ["1", "25", "50"]
    (slider,) = [attrs for attrs in page.all("input") if attrs["type"] == "range"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")
    shown = marks(page)
    assert shown.count("Right answer blue circle or circle") == 3
    assert shown.count("well-formed right accuracy 1 format 1 tokens 31 caption a1: red square; b2: blue circle;") == 3
    assert shown.count("not well-formed: </caption> stands 0 times accuracy 0 format 0 tokens 31 <caption> a grid") == 3
    # Without scripts all steps stand below each other, each under its heading, and nothing to turn them is shown.
    assert [step for step in ("Step 1", "Step 25", "Step 50") if step in shown] == ["Step 1", "Step 25", "Step 50"]
    assert [attrs for attrs in page.all("div") if attrs.get("class") == "turn"] == [{"class": "turn", "hidden": None}]


@pytest.mark.parametrize(
    ("rewards", "shown"),
    [
        ({"accuracy": 1.0}, "well-formed right accuracy 1"),
        ({"accuracy": 0.5}, "well-formed wrong accuracy 0.5"),
        ({"accuracy": None, "overlong": -0.25}, "well-formed unscored accuracy – overlong −0.25"),
        # Scores by a discriminator say nothing about right and wrong, so the verifier is asked.
        ({"perception": 0.4371, "reasoning": None}, "well-formed wrong perception 0.437 reasoning –"),
    ],
)
def test_right_and_wrong_is_what_the_policy_was_told(tmp_path, rewards, shown):
    step = add_step(tmp_path, "rl", 0, None)
    add_rollouts(step, [(1, [("", response("a", "b", "red"), rewards)])])
    page = read(write_report(tmp_path, parse=GRAMMAR.parse, is_correct=is_correct))
    assert shown in marks(page)


def test_a_teachers_answer_stands_before_the_rollouts_it_is_played_against(tmp_path):
    step = add_step(tmp_path, "align", 0, None)
    add_rollouts(step, [(1, [("", "x", {"perception": None})])], teacher=response("seen", "argued", "blue circle"))
    shown = marks(read(write_report(tmp_path, parse=GRAMMAR.parse, is_correct=is_correct)))
    assert "Teacher well-formed right caption seen think argued answer blue circle Rollout 1 not well-formed" in shown


def test_a_text_that_was_cut_to_be_kept_is_what_it_was_when_it_was_whole(tmp_path):
    step = add_step(tmp_path, "rl", 0, None)
    cut = "<caption> a [… 9 characters left out …] b </answer>"
    rollout = {"text": cut, "problem": None, "length": 9000, "rewards": {"accuracy": 1.0}}
    line = {"step": 1, "prompts": [{"question": "q", "answers": ["b"], "images": [], "rollouts": [rollout]}]}
    (step / "rollouts.jsonl").write_text(json.dumps(line))
    shown = marks(read(write_report(tmp_path, parse=GRAMMAR.parse, is_correct=is_correct)))
    assert "Rollout 1 well-formed right accuracy 1 tokens 9000 <caption> a [… 9 characters" in shown


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"step": 1, "prompts": 5},
        {"step": [1], "prompts": [5, {}, {"rollouts": [5, {"text": 5}], "images": 5, "answers": 5}]},
        {"step": 1, "prompts": [{"rollouts": [{"text": "x", "problem": 5, "rewards": 5, "length": "y"}]}]},
        {"step": 1, "prompts": [{"rollouts": [{"text": "x", "rewards": {"accuracy": "y"}}], "images": [None]}]},
    ],
)
def test_a_line_of_another_shape_is_shown_as_far_as_it_goes(tmp_path, line):
    step = add_step(tmp_path, "rl", 0, None)
    (step / "rollouts.jsonl").write_text(json.dumps(line) + "\n" + '{"step": 2, "pro')
    page = read(write_report(tmp_path, parse=GRAMMAR.parse, is_correct=is_correct))
    assert len([attrs for attrs in page.all("div") if "data-step" in attrs]) == 1


def test_a_rollouts_picture_that_is_not_inline_data_is_dropped_with_a_note(tmp_path):
    step = add_step(tmp_path, "rl", 0, None)
    add_rollouts(step, [(1, [])], images=["https://example.org/x.png", picture()])
    page = read(write_report(tmp_path))
    assert [attrs["src"] for attrs in page.all("img")] == [picture()]
    assert "rollouts.jsonl: a picture that is not inline PNG or JPEG data is left out" in page.text


def test_where_a_reward_says_right_or_wrong_nothing_is_judged_again(tmp_path):
    step = add_step(tmp_path, "rl", 0, None)
    looks = [("", response("a", "b", "red"), {"accuracy": 1.0}), ("", response("a", "b", "blue"), {"accuracy": None})]
    add_rollouts(step, [(1, looks)])
    judged = []
    write_report(tmp_path, parse=GRAMMAR.parse, is_correct=lambda *asked: bool(judged.append(asked)))
    assert judged == []


def test_half_a_character_does_not_keep_the_page_from_being_written(tmp_path):
    step = add_step(tmp_path, "rl", 0, None)
    add_rollouts(step, [(1, [("", "half \ud83d of a face", {"accuracy": 0.0})])])
    assert "half ? of a face" in read(write_report(tmp_path)).text


# What lies in a folder ------------------------------------------------------------------------------------------------


def test_the_page_of_a_step_is_about_the_step_and_not_about_the_warm_up_inside_it(tmp_path):
    align = add_step(tmp_path, "align", 0, None)
    add_metrics(align, [{"step": 1, "loss": 1.0, "reward": 0.5}])
    (align / "warmup").mkdir()
    add_metrics(align / "warmup", [{"step": 1, "discriminator/loss/perception": 0.7}])
    add_rollouts(align, [(1, [("", "said", {"perception": 0.5})])])
    page = read(write_report(align))
    assert "Loss" in page.text
    assert "said" in page.text
    assert "warmup" not in page.text


def test_held_out_pairs_of_a_warm_up_stand_in_the_plot_of_what_they_measure():
    lines = [{"step": s, **{f"{where}discriminator/accuracy/a": 0.8 for where in ("", "held_out/")}} for s in (1, 2)]
    (plot,) = plots(lines)
    assert not plot.folded
    assert [curve.held_out for curve in plot.curves] == [False, True]


STUDY = {
    "study": "roads",
    "baseline": "rl",
    "seeds": [0, 1],
    "arms": {
        "align_rl": {
            "seconds": 55.4,
            "metrics": {
                "accuracy/greedy": {
                    "mean": {"value": 0.709},
                    "over_seeds": {"value": -0.015, "low": -0.049, "high": 0.019},
                    "agree": True,
                },
                "length/greedy": {
                    "mean": {"value": 41.0},
                    "over_seeds": {"value": 1.5, "low": None, "high": None},
                    "agree": False,
                },
            },
        },
        "rl": {
            "seconds": 77,
            "metrics": {
                "accuracy/greedy": {
                    "mean": {"value": 0.724},
                    "over_seeds": {"value": 0.0, "low": 0.0, "high": 0.0},
                    "agree": False,
                }
            },
        },
    },
}


def test_a_study_shows_its_arms_beside_the_baseline(tmp_path):
    study = add_step(tmp_path, "compare", 0, None)
    (study / "study.json").write_text(json.dumps(STUDY))
    (study / "seed-0").mkdir()
    shown = words(read(write_report(study)))
    assert "Arms compared" in shown
    assert "Gain in greedy accuracy over rl, points align_rl −1.5 ± 3.4" in shown
    assert "align_rl 55 s 70.9 −1.5 ± 3.4 ✓ 41.0 +1.5 rl baseline 1 min 17 s 72.4 –" in shown
    assert "Means over 2 seeds" in shown


def test_a_failed_arm_stands_on_the_page_with_its_error(tmp_path):
    study = add_step(tmp_path, "compare", 0, None)
    (study / "study.json").write_text(json.dumps(STUDY | {"failed": {"seed 1, rl": f"out of memory {HOSTILE}"}}))
    page = read(write_report(study))
    shown = words(page)
    assert "1 failed seed 1, rl out of memory </script>" in shown
    assert "seed 1, rl failed" in shown
    (study / "study.json").write_text(json.dumps({"study": "x", "arms": {}, "failed": {"seed 0, rl": "no data"}}))
    assert "seed 0, rl no data" in words(read(write_report(study)))


def test_a_cost_and_a_lacking_seed_stand_beside_their_arm(tmp_path):
    study = add_step(tmp_path, "compare", 0, None)
    align = STUDY["arms"]["align_rl"] | {"seeds": [1], "teacher": {"usd": 1.5}}
    (study / "study.json").write_text(json.dumps(STUDY | {"arms": STUDY["arms"] | {"align_rl": align}}))
    shown = words(read(write_report(study)))
    assert "align_rl 1 of 2 seeds 55 s $1.50 70.9" in shown
    assert "rl baseline 1 min 17 s – 72.4" in shown


def test_a_study_that_is_going_says_how_far_it_is(tmp_path):
    recipe = {"arms": {"rl": [{"stage": "rl"}], "sft": [], "later": [{"stage": "rl"}]}, "seeds": [0, 1], "shared": [1]}
    study = add_step(tmp_path, "compare", 0, None, recipe=recipe, status="running")
    add_step(study / "seed-0", "sft", 1, None)
    add_step(study / "seed-0" / "rl", "rl", 2, None)
    add_step(study / "seed-0" / "rl", "eval", 3, None)
    add_step(study / "seed-1" / "rl", "rl", 2, None)
    add_step(study / "seed-0" / "sft", "eval", 4, None, status="running")
    (study / "study.json").write_text(json.dumps({"failed": {"seed 1, sft": "no data"}}))
    (step,) = read_steps(study)
    assert dict(progress(step).arms) == {
        "shared steps": [("finished", "done"), ("", "")],
        "rl": [("finished", "done"), ("between", "rl done")],
        "sft": [("running", "eval running"), ("failed", "failed")],
        "later": [("", ""), ("", "")],
    }
    shown = words(read(write_report(study)))
    assert "1 of 6 are done: 3 arms, 2 seeds." in shown
    assert "later waiting waiting" in shown


def test_an_interval_far_wider_than_the_others_is_cut():
    spans = [(0.1, 0.09, 0.11), (0.12, 0.11, 0.13), (0.11, -3.0, 3.0)]
    rows = [(str(at), {"value": at, "low": low, "high": high}, Cell("")) for at, low, high in spans]
    bars = forest(metric("accuracy/greedy"), "", rows, 0.1).bars
    assert [bar.cut for bar in bars] == ["", "", "left right"]
    assert bars[1].high - bars[1].low > 20
    assert all(0 <= bar.low <= bar.at <= bar.high <= 100 for bar in bars)


def test_a_study_may_lack_anything(tmp_path):
    study = add_step(tmp_path, "compare", 0, None)
    for odd in ({"arms": {"a": {}}}, {"arms": {"a": {"metrics": {"accuracy/greedy": {}}}}, "seeds": 5}, {"arms": 5}):
        (study / "study.json").write_text(json.dumps(odd))
        assert "What was done" in read(write_report(study)).text
    odd_recipes = ({"arms": {"a": 5}, "seeds": [0], "shared": 5}, {"arms": 5}, {"arms": {"a": []}, "seeds": 0})
    for number, recipe in enumerate(odd_recipes):
        study = add_step(tmp_path / str(number), "compare", 0, None, recipe=recipe)
        (study / "study.json").write_text(json.dumps({"failed": 5}))
        assert "What was done" in read(write_report(study)).text


# What evaluations say -------------------------------------------------------------------------------------------------


def test_each_run_stands_beside_the_one_it_started_from():
    table = comparison("eval", SUMMARY, {"align": "sft", "rl": "align"}, lambda shown: shown.quantity == "accuracy")
    assert [(column.name, column.before) for column in table.columns] == [
        ("sft", ""),
        ("align", "sft"),
        ("rl", "align"),
    ]
    greedy, sampled = table.lines
    assert [cell.value for cell in greedy.cells] == ["54.0", "55.0", "73.0"]
    assert [(cell.change, cell.kind) for cell in greedy.cells[:2]] == [("", ""), ("+1.0 ± 3.1", "noise")]
    assert (sampled.cells[2].change, sampled.cells[2].kind) == ("+20.3 17.8 to 22.9", "better")
    # Where a stage between was not measured, the nearest before it is taken.
    assert run_before("rl", ["sft", "rl"], {"rl": "align", "align": "sft"}) == "sft"
    assert run_before("rl", ["sft", "rl"], {"rl": "rl"}) == ""
    # A road of its own is not compared with its neighbour in the table.
    apart = comparison("eval", SUMMARY, {"align": "sft", "rl": "sft"}, lambda shown: shown.name == "accuracy/sampled")
    assert apart.lines[0].cells[2].change == ""


def test_the_last_run_stands_in_large_with_its_gain_over_the_first():
    pair = {"a": "sft", "b": "rl", "metric": "accuracy/sampled", "difference": 0.22, "low": 0.195, "high": 0.245}
    first, *others = tiles(SUMMARY | {"pairs": [pair]})
    assert first == ("sampled accuracy", "60.0 %", "+22.0 ± 2.5", "better", "sft → rl")
    assert [(tile.value, tile.change, tile.runs) for tile in others] == [("73.0 %", "", "rl"), ("63.0 %", "", "rl")]


ATTRIBUTION = [
    {"run": "sft", "decoding": "greedy", "source": None, "wrong": 40, "causes": {
        "perception": {"value": 0.25, "low": 0.14, "high": 0.40, "n": 40},
        "reasoning": {"value": 0.75, "low": 0.60, "high": 0.86, "n": 40},
        "verifier": {"value": 0.0, "low": 0.0, "high": 0.09, "n": 40},
    }},
    {"run": "sft", "decoding": "greedy", "source": "charts", "wrong": 4, "causes": {"perception": {"value": 1.0}}},
]  # fmt: skip


def test_causes_are_bars_that_fill_their_width(tmp_path):
    found = causes("eval", ATTRIBUTION)
    assert found.names == ["perception", "reasoning"]
    assert [(piece.cause, piece.width) for piece in found.bars[0].pieces] == [("perception", 25.0), ("reasoning", 75.0)]
    assert [bar.over_all for bar in found.bars] == [True, False]
    assert [entry[:2] for entry in found.legend] == [("perception", 0), ("reasoning", 1)]
    # A cause has its colour on every page, whatever else was found.
    only = causes("eval", [{"run": "rl", "wrong": 1, "causes": {"format": {"value": 1.0}}}])
    assert (only.legend[0][1], only.bars[0].pieces[0].number) == (3, 3)
    step = add_step(tmp_path, "eval", 0, None)
    (step / "summary.json").write_text(json.dumps(SUMMARY | {"attribution": [*ATTRIBUTION, {"odd": 1}, 5]}))
    shown = words(read(write_report(tmp_path)))
    assert "Why answers are wrong" in shown
    assert "sft greedy 40 25.0 14.0 to 40.0 75.0 60.0 to 86.0" in shown
    assert "sft greedy, charts 4 100.0 –" in shown


def test_benchmarks_are_shown_with_what_failed(tmp_path):
    step = add_step(tmp_path, "eval", 0, None)
    one = {"run": "rl", "task": "mmmu", "metric": "accuracy", "value": 0.52, "low": 0.49, "high": 0.55}
    found = [one | {"questions": 900, "failed": 3}, one | {"run": "sft", "value": 0.4, "low": 0.37, "high": 0.43}, 5]
    (step / "summary.json").write_text(json.dumps({"runs": [], "pairs": [], "benchmarks": found}))
    shown = words(read(write_report(tmp_path)))
    assert "mmmu points accuracy 52.0 ±3.0 3 failed 40.0 ±3.0" in shown


def test_what_was_measured_beside_a_run_stands_on_its_page(tmp_path):
    sft = add_step(tmp_path / "demo", "sft", 0, None, finished="2026-11-23T10:05:00.123+00:00")
    source = {"run": "elsewhere/demo/sft", "checkpoint": None, "finished": "2026-11-23T10:05:00.123+00:00"}
    drift = add_step(tmp_path, "drift", 9, None, **{"from": {"runs": [source]}})
    cells = {"drift/perception": {"value": 0.73, "low": 0.7, "high": 0.76, "n": 64}}
    (drift / "drift.json").write_text(json.dumps({"runs": [{"id": "sft", "metrics": cells}]}))
    shown = words(read(write_report(tmp_path / "demo")))
    assert "sft, perception 0.730 ±0.030" in shown
    # Done again since, it is another run.
    manifest = json.loads((sft / "run.json").read_text())
    (sft / "run.json").write_text(json.dumps(manifest | {"finished": "2026-11-23T11:00:00.000+00:00"}))
    assert "sft, perception" not in read(write_report(tmp_path / "demo")).text


# Responses side by side -----------------------------------------------------------------------------------------------


def add_samples(folder: Path, run: str, answers: list[str | None]) -> None:
    """One greedy response a question whose right answer is red; None is malformed."""
    lines = []
    for number, answer in enumerate(answers):
        text = "<caption> a" if answer is None else response("a", "b", answer)
        verdict = {"accuracy": float(answer == "red"), "well_formed": float(answer is not None)}
        lines.append({"id": f"q{number}", "greedy": {"text": text, **verdict, "length": 9}, "samples": []})
    (folder / f"samples-{run}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def build_gallery(run: Path) -> Path:
    """An evaluation of two runs on four questions: gained, lost, malformed then right, right twice."""
    folder = add_step(run, "eval", 0, None)
    summary = {"runs": [{"id": "sft", "metrics": {}}, {"id": "rl", "metrics": {}}], "pairs": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    add_samples(folder, "sft", ["blue", "red", None, "red"])
    add_samples(folder, "rl", ["red", "blue", "red", "red"])
    asked = [
        {"id": f"q{i}", "source": "ab"[i % 2], "question": f"Which colour, {i}?", "answers": ["red"],
         "images": [picture()], "teacher": response("a", "taught", "red")}
        for i in range(4)
    ]  # fmt: skip
    (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    wrong = {"id": "q1", "decoding": "greedy", "number": 0, "cause": "perception"}
    (folder / "attribution-rl.jsonl").write_text(json.dumps(wrong) + "\n")
    return folder


def test_runs_answer_the_same_question_side_by_side(tmp_path):
    page = read(write_report(build_gallery(tmp_path / "run"), parse=GRAMMAR.parse))
    sides = [attrs for attrs in page.all("div") if "data-run" in attrs]
    found = [(s["data-run"], s["data-verdicts"], s["data-cause"]) for s in sides if s["data-run"]]
    assert sorted(found) == sorted([
        ("sft", "wrong", ""), ("rl", "right gained", ""),
        ("sft", "right", ""), ("rl", "wrong lost", "perception"),
        ("sft", "malformed", ""), ("rl", "right gained", ""),
        ("sft", "right", ""), ("rl", "right", ""),
    ])  # fmt: skip
    assert [s["data-run"] for s in sides].count("") == 4  # the teacher's answers
    assert {attrs["data-source"] for attrs in page.all("article")} == {"a", "b"}
    assert page.text.count("taught") == 4
    assert len(page.all("img")) == 4


def test_without_its_questions_an_evaluation_names_them_by_id(tmp_path):
    folder = build_gallery(tmp_path / "run")
    (folder / "questions.jsonl").unlink()
    assert "Question q3" in read(write_report(folder, parse=GRAMMAR.parse)).text


def test_of_many_questions_those_are_chosen_where_runs_differ():
    lines = [{"id": f"q{i}", "greedy": {"accuracy": float(i == 77), "well_formed": 1.0}} for i in range(100)]
    other = [{"id": f"q{i}", "greedy": {"accuracy": 0.0, "well_formed": 1.0}} for i in range(100)]
    assert chosen({"a": lines, "b": other}, 3) == ["q77", "q0", "q1"]


def test_a_failed_request_is_no_wrong_answer(tmp_path):
    folder = build_gallery(tmp_path / "run")
    (folder / "samples-rl.jsonl").write_text(json.dumps({"id": "q0", "greedy": {"failed": HOSTILE}, "samples": []}))
    page = read(write_report(folder, parse=GRAMMAR.parse))
    assert "no response: </script>" in page.text
    (side,) = [attrs for attrs in page.all("div") if attrs.get("data-run") == "rl"]
    assert side["data-verdicts"] == ""


# Size -----------------------------------------------------------------------------------------------------------------


def test_a_long_run_with_large_pictures_stays_a_page_that_can_be_mailed(tmp_path):
    step = add_step(tmp_path, "rl", 0, None)
    large = "data:image/jpeg;base64," + "A" * 30_000
    looks = [("", response("a", "b" * 8000, "red"), {"accuracy": 0.0})] * 4
    add_rollouts(step, [(number, looks) for number in range(1, 61)], images=[large, large])
    add_metrics(step, [{"step": s, **{f"room{i}/x": s * 0.1 for i in range(30)}} for s in range(1, 3001)])
    path = write_report(tmp_path, parse=GRAMMAR.parse)
    assert path.stat().st_size < 3_500_000
    page = read(path)
    steps = [attrs["data-step"] for attrs in page.all("div") if "data-step" in attrs]
    assert (steps[0], steps[-1]) == ("1", "60")
    assert f"Of 60 kept steps {len(steps)} are shown" in words(page)


def test_a_text_of_a_megabyte_is_shown_by_its_ends(tmp_path):
    step = add_step(tmp_path, "align", 0, None)
    row = {"question": "q", "before": {"text": "begin" + "x" * 1_000_000 + "end"}}
    (step / "showcase.jsonl").write_text(json.dumps(row))
    path = write_report(tmp_path)
    assert path.stat().st_size < 100_000
    assert re.search(r"begin.*992\d{3} characters left out.*end", path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.93, 1.02, [0.95, 0.975, 1.0]),
        (-3, 7, [-2.5, 0, 2.5, 5]),
        (0, 700, [0, 200, 400, 600]),
    ],
)
def test_axes_are_marked_with_round_numbers(low, high, marks):
    assert ticks(low, high) == pytest.approx(marks)


def test_long_curves_are_thinned_by_means():
    (plot,) = plots([{"step": s, "loss": float(s)} for s in range(1, 1001)])
    (curve,) = plot.curves
    assert len(curve.x) == 334
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (3, 2.0, 1000, 1000.0)
