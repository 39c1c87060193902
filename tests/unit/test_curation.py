"""Which prompts a curation keeps, and what it goes on from."""

import io

import pytest
from pydantic import ValidationError
from rich.console import Console

from prism_cli.assembly.response import grammar_of
from prism_cli.data.sources import open_source
from prism_cli.errors import DataError
from prism_cli.evaluation.backend import Sampled
from prism_cli.evaluation.kept_samples import SamplingPlan
from prism_cli.evaluation.pass_rates import Rate, grader, pass_rates, rate_of
from prism_cli.recipes.identity import differences, to_dict
from prism_cli.recipes.sections import ResponseSection
from prism_cli.recipes.stages import CurateRecipe
from prism_cli.rewards.accuracy import is_correct
from prism_cli.stages.curate import _each_once, describe_kept, histogram


@pytest.mark.parametrize(
    ("samples", "band", "counts"),
    [
        (8, (0.2, 0.8), [2, 3, 4, 5, 6]),
        (5, (0.2, 0.8), [1, 2, 3, 4]),
        (10, (0.3, 0.7), [3, 4, 5, 6, 7]),
        (4, (0.5, 0.5), [2]),
        (1, (0.0, 1.0), [0, 1]),
    ],
)
def test_a_band_includes_its_ends(samples, band, counts):
    assert CurateRecipe(samples=samples, band=band).kept_counts == counts


@pytest.mark.parametrize("samples", [5, 10, 15, 20, 50, 100, 1000])
def test_a_share_that_equals_an_end_is_never_lost_to_rounding(samples):
    counts = CurateRecipe(samples=samples, band=(0.2, 0.8)).kept_counts
    assert (counts[0], counts[-1]) == (samples // 5, samples * 4 // 5)


def test_hard_is_never_solved_whatever_the_band():
    assert CurateRecipe(keep="hard", samples=1).kept_counts == [0]
    assert describe_kept(CurateRecipe(keep="hard")) == "prompts with none of 8 right"
    assert describe_kept(CurateRecipe()) == "prompts with 2 to 6 of 8 right (pass rate 0.2 to 0.8)"


def test_a_band_no_pass_rate_can_lie_in_is_refused():
    with pytest.raises(ValidationError, match="no pass rate of 1 samples"):
        CurateRecipe(samples=1)
    with pytest.raises(ValidationError, match="first number must not be above"):
        CurateRecipe(band=(0.8, 0.2))


def test_band_and_keep_may_change_and_what_decides_the_samples_may_not():
    old = to_dict(CurateRecipe())
    assert differences(old, to_dict(CurateRecipe(band=(0.1, 0.9)))) == []
    assert differences(old, to_dict(CurateRecipe(keep="hard"))) == []
    for key, value in {"samples": 16, "temperature": 0.5, "seed": 1, "batch_size": 4, "max_response_tokens": 9}.items():
        assert len(differences(old, to_dict(CurateRecipe(**{key: value})))) == 1


def test_a_malformed_response_is_wrong_even_with_the_right_answer_in_it():
    grammar = grammar_of(ResponseSection())
    whole = "<caption> x </caption> <think> y </think> <answer> {} </answer>"
    texts = [whole.format("red"), whole.format("blue"), "<answer> red </answer>"]
    row = {"id": "a", "prompt": [{"role": "user", "content": "which colour ?"}], "answers": ["red"]}
    grade = grader(grammar, is_correct)
    graded = [grade(row, Sampled(text, [0])) for text in texts]
    assert [one["accuracy"] for one in graded] == [1.0, 0.0, 0.0]
    assert rate_of({"id": "a", "samples": graded}) == Rate("a", right=1, malformed=1)


@pytest.mark.parametrize("cut", [1, 100, 205, 206, 10**6])
def test_a_curation_cut_off_anywhere_ends_as_if_it_was_not(tmp_path, cut):
    from prism_cli.data.rows import dataset, row

    rows = dataset(row(id, "which colour ?", [], answers=["é"]) for id in "abcde")

    def sample(conversations, *, temperature, seed, prefills=None, on_batch=None):
        return [Sampled(f"{seed + i}", [seed + i]) for i in range(len(conversations))]

    def grade(row, sampled):
        return {"text": f"é{row['id']}{sampled.text}", "accuracy": float(sampled.text in "05"), "well_formed": 1.0}

    def rates(path):
        return pass_rates(sample, rows, 2, SamplingPlan(1.0, 0, 4), grade, path)

    complete = rates(tmp_path / "complete.jsonl")
    # Responses 0 to 9, two a prompt: 0 is the first prompt's, 5 the third's.
    assert complete == [Rate("a", 1, 0), Rate("b", 0, 0), Rate("c", 1, 0), Rate("d", 0, 0), Rate("e", 0, 0)]
    text = (tmp_path / "complete.jsonl").read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(text[:cut])
    assert rates(tmp_path / "cut.jsonl") == complete
    assert (tmp_path / "cut.jsonl").read_bytes() == text


def test_a_row_that_a_mixture_repeats_is_asked_once():
    from prism_cli.data.rows import dataset, row

    rows = _each_once(dataset(row(id, "what ?", []) for id in "abacb"))
    assert rows["id"] == ["a", "b", "c"]


def table(counts, kept_right):
    console = Console(width=100, file=io.StringIO())
    summary = {"prompts_by_right": counts, "samples": len(counts) - 1, "kept_right": kept_right}
    console.print(histogram(summary))
    return console.file.getvalue()


def test_the_histogram_has_a_bar_a_rate_and_says_how_coarse_it_is():
    text = table([8, 4, 2, 0, 1], [1, 2, 3])
    lines = {line.split()[0]: line for line in text.splitlines()[3:8]}
    assert [lines[right].count("█") for right in "01234"] == [32, 16, 8, 0, 4]
    assert lines["0"].split()[-1] == "8"
    assert lines["1"].split()[-2:] == ["4", "4"]
    assert lines["4"].split()[-1] == "1"
    # Wilson's interval of 1 of 4.
    assert "a true rate of 0.05 to 0.70 gives" in " ".join(text.split())


def test_many_samples_share_lines():
    lines = [line.split() for line in table([1] * 65, list(range(13, 52))).splitlines() if "–" in line]
    assert (lines[0][0], lines[-1][0]) == ("0–3", "60–63")
    assert sum(int(line[3]) for line in lines if len(line) == 4) == 39
    assert sum(int(line[2]) for line in lines) == 64


def test_the_run_folder_of_a_set_stands_for_the_set(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "rates.jsonl").write_text('{"id": "a", "pass_rate": 0.5}\n')
    (tmp_path / "data/rows.jsonl").write_text('{"prompt": "what ?", "answers": ["x"]}\n')
    assert [raw.fields["prompt"] for raw in open_source(str(tmp_path))] == ["what ?"]


def test_a_run_without_a_set_is_no_source(tmp_path):
    for name in ("run.json", "recipe.yaml", "rates.jsonl"):
        (tmp_path / name).write_text('{"id": "a", "pass_rate": 0.5}\n')
    with pytest.raises(DataError, match="is a run without a set"):
        open_source(str(tmp_path))
