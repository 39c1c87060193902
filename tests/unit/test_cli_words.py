"""What the words after a command mean."""

import pytest

from prism_cli.cli.words import sort_words
from prism_cli.errors import RecipeError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_word_with_a_key_and_equals_is_a_value_wherever_it_stands():
    assert sort_words(["seed=1", "tiny", "optimizer.learning_rate=1e-6"]) == (
        "tiny",
        ["seed=1", "optimizer.learning_rate=1e-6"],
        [],
    )


def test_a_value_may_hold_anything():
    words = ["teacher.endpoint=http://h/v1?a=b", "data={type: file, path: x}", "from=runs/sft"]
    assert sort_words(words).overrides == words


def test_an_existing_file_is_the_recipe_even_with_equals_in_its_name(folder):
    (folder / "lr=1e-6.yaml").write_text("")
    assert sort_words(["lr=1e-6.yaml"]).recipe == "lr=1e-6.yaml"


def test_a_path_with_equals_in_it_is_a_recipe_not_a_value():
    assert sort_words(["sweeps/lr=1e-6/align.yaml"]).recipe == "sweeps/lr=1e-6/align.yaml"


def test_two_recipes_are_refused():
    with pytest.raises(RecipeError, match="'a' and 'b': a command takes one recipe"):
        sort_words(["a", "b"])


def test_a_folder_with_a_manifest_is_a_run_where_runs_are_words(folder):
    (folder / "runs/sft").mkdir(parents=True)
    (folder / "runs/sft/run.json").write_text("{}")
    words = ["runs/sft", "runs/sft@30", "tiny", "samples=2"]
    assert sort_words(words, with_runs=True) == ("tiny", ["samples=2"], ["runs/sft", "runs/sft@30"])
    assert sort_words(["runs/sft"]).runs == []


def test_no_words_mean_nothing():
    assert sort_words(None) == (None, [], [])
