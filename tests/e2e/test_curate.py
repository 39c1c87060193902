"""`prism data curate`: which prompts are kept, that a kill costs nothing, and that RL takes the set as it is."""

import hashlib
import json
import signal

import pytest
from PIL import Image

from prism_cli.assembly.response import grammar_of
from prism_cli.data.load import load_rows
from prism_cli.data.reading import Checks
from prism_cli.data.rows import png
from prism_cli.recipes.sections import ResponseSection
from prism_cli.rewards.accuracy import is_correct
from prism_cli.worlds import world

GRAMMAR = grammar_of(ResponseSection())
EXAMPLES = world("shapes").examples("train", 32, 3)
# Four prompts are sampled at once, so there are eight lots.
SMALL = ["data", "curate", "tiny", "data.size=32", "-k", "4", "batch_size=16"]
SAMPLING = "prism_cli.evaluation.sampling:sample_responses"
LOADING = ("prism_cli.models:load_policy", 1)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def curated(prism, trained, tmp_path_factory):
    """A folder with a curated set in `set` and what the command printed in `printed`."""
    folder = tmp_path_factory.mktemp("curate")
    done = prism(*SMALL, "--from", trained, "--output", "set", cwd=folder)
    assert done.code == 0, done.stderr
    folder.joinpath("printed").write_text(done.stdout)
    return folder


def test_a_prompt_is_kept_when_its_share_of_right_answers_is_in_the_band(curated):
    rates = {rate["id"]: rate for rate in lines(curated / "set/rates.jsonl")}
    for example, sampled in zip(EXAMPLES, lines(curated / "set/samples.jsonl"), strict=True):
        responses = [GRAMMAR.parse(sample["text"]) for sample in sampled["samples"]]
        right = [one.well_formed and is_correct(one.answer, [example.answer], example.question) for one in responses]
        assert len(right) == 4
        malformed = sum(not one.well_formed for one in responses) / 4
        shares = {"pass_rate": sum(right) / 4, "malformed": malformed, "kept": 1 <= sum(right) <= 3}
        assert rates[example.id] == {"id": example.id, **shares}
    kept = [id for id, rate in rates.items() if rate["kept"]]
    assert [row["id"] for row in lines(curated / "set/data/rows.jsonl")] == kept
    assert 5 < len(kept) < 32
    assert f"kept {len(kept)} of 32 prompts" in (curated / "printed").read_text()


def test_rl_takes_the_set_as_it_is(prism, trained, curated):
    by_id = {example.id: example for example in EXAMPLES}
    rates = {rate["id"]: rate["pass_rate"] for rate in lines(curated / "set/rates.jsonl")}
    written = lines(curated / "set/data/rows.jsonl")
    assert {row["id"]: row["pass_rate"] for row in written} == {row["id"]: rates[row["id"]] for row in written}
    rows = load_rows(str(curated / "set"), checks=Checks("rl", verify=is_correct)).rows
    assert len(rows) == len(written)
    for row in rows:
        example = by_id[row["id"]]
        assert row["prompt"] == [{"role": "user", "content": example.question}]
        assert row["answers"] == [example.answer]
        assert row["images"][0].tobytes() == example.image.tobytes()
    dry = prism("rl", "tiny", "--from", trained, "--data", "set", "--dry-run", cwd=curated)
    assert dry.code == 0, dry.stderr
    assert "set, conversational" in dry.stderr


def test_the_manifest_and_the_card_say_whose_rates_these_are(trained, curated):
    weights = hashlib.sha256((trained / "model/model.safetensors").read_bytes()).hexdigest()
    manifest = json.loads((curated / "set/run.json").read_text())
    assert manifest["policy"]["run"] == str(trained)
    assert [step["stage"] for step in manifest["policy"]["lineage"]] == ["sft"]
    assert manifest["policy"]["weights"] == {"model.safetensors": weights}
    told = json.loads((curated / "set/summary.json").read_text())
    assert sum(told["prompts_by_right"]) == told["prompts"] == 32
    assert sum(told["prompts_by_right"][1:4]) == told["kept"]
    card = (curated / "set/data/README.md").read_text()
    assert weights in card
    assert f"| prompts | {told['kept']} of 32 from world shapes |" in card
    assert str(trained.parent) not in card


def test_another_band_on_the_same_folder_samples_nothing_and_json_is_all_that_is_printed(prism, trained, curated):
    order = [*SMALL, "--from", trained, "--output", "set"]
    done = prism(*order, "--band", "0", "0.25", "--json", cwd=curated, kill=LOADING)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kept"] == sum(told["prompts_by_right"][:2])
    rows = lines(curated / "set/data/rows.jsonl")
    assert {row["pass_rate"] for row in rows} == {0.0, 0.25}
    assert {path.name for path in (curated / "set/data/pictures").iterdir()} == {row["image"][9:] for row in rows}
    first = (curated / "set/samples.jsonl").read_bytes()
    assert prism(*order, cwd=curated, kill=LOADING).code == 0
    assert (curated / "set/samples.jsonl").read_bytes() == first


def test_a_killed_curation_samples_no_finished_prompt_again_and_ends_the_same(prism, trained, curated):
    order = [*SMALL, "--from", trained, "--output", "killed"]
    assert prism(*order, cwd=curated, kill=(SAMPLING, 4)).code == -signal.SIGKILL
    samples = curated / "killed/samples.jsonl"
    kept = samples.read_text()
    assert kept.count("\n") == 12
    # What a lot leaves that was being written: a line of it, and a piece of the next.
    samples.write_text(f'{kept}{kept.splitlines()[0]}\n{{"id": "shapes-tr')
    done = prism(*order, cwd=curated, kill=(SAMPLING, 6))
    assert done.code == 0, "five lots were missing"
    assert samples.read_text() == (curated / "set/samples.jsonl").read_text()
    assert samples.read_text().startswith(kept)
    assert len(lines(curated / "killed/rates.jsonl")) == 32


@pytest.fixture
def unsolvable(tmp_path):
    """Rows whose accepted answer no policy of this world can give."""
    (tmp_path / "pictures").mkdir()
    with open(tmp_path / "rows.jsonl", "w") as file:
        for number, example in enumerate(EXAMPLES[:4]):
            (tmp_path / f"pictures/{number}.png").write_bytes(png(example.image))
            row = {"id": example.id, "image": f"pictures/{number}.png", "question": example.question, "answer": "zebra"}
            file.write(json.dumps(row) + "\n")
    return tmp_path


def test_nothing_kept_is_an_error_with_a_cure_and_the_hard_ones_are_there_for_a_teacher(prism, trained, unsolvable):
    order = ["data", "curate", "tiny", "--from", trained, "--data", "rows.jsonl", "-k", "4", "--output", "set"]
    none = prism(*order, cwd=unsolvable)
    assert none.code == 1
    assert "of 4 prompts none" in none.stderr
    assert "--band 0.1 0.9" in none.stderr
    assert "a larger -k" in none.stderr
    assert "right of 4" in none.stdout, "the histogram"
    assert not (unsolvable / "set/data").exists()
    hard = prism(*order, "--keep", "hard", cwd=unsolvable, kill=LOADING)
    assert hard.code == 0, hard.stderr
    assert "next     prism collect --data set " in hard.stdout
    rows = load_rows(str(unsolvable / "set/data")).rows
    assert rows["id"] == [example.id for example in EXAMPLES[:4]]
    with Image.open(unsolvable / "pictures/0.png") as picture:
        assert rows[0]["images"][0].tobytes() == picture.convert("RGB").tobytes()
    (unsolvable / "rows.jsonl").write_text((unsolvable / "rows.jsonl").read_text().replace("zebra", "giraffe"))
    other = prism(*order, cwd=unsolvable, kill=LOADING)
    assert other.code == 1
    assert "was sampled on other rows" in other.stderr


def test_rows_without_answers_are_refused_before_a_model_is_loaded(prism, trained, unsolvable):
    text = (unsolvable / "rows.jsonl").read_text()
    (unsolvable / "rows.jsonl").write_text(text.replace(', "answer": "zebra"', "", 1))
    done = prism("data", "curate", "tiny", "--from", trained, "--data", "rows.jsonl", cwd=unsolvable, kill=LOADING)
    assert done.code == 1
    assert "rows.jsonl:1: answers" in done.stderr
    assert "Traceback" not in done.stderr
