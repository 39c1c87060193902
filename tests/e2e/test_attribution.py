"""`prism eval --attribute` from the command to its files."""

import json
import signal
from collections import Counter

import pytest

# Hot enough that most sampled answers are wrong: more than one lot is tried, so that a kill may fall between.
SMALL = ["data.size=80", "samples=1", "temperature=1.6", "attribution=all", "max_response_tokens=48"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def attributed(prism, trained, tmp_path_factory):
    """A folder with a finished evaluation that was killed while it tried its second lot."""
    folder = tmp_path_factory.mktemp("attribution")
    order = ["eval", trained, "tiny", *SMALL, "--output", "wrong"]
    second = ("prism_cli.evaluation.attribution:retry", 2)
    assert prism(*order, cwd=folder, kill=second).code == -signal.SIGKILL
    folder.joinpath("kept").write_text((folder / "wrong/retries-sft.jsonl").read_text())
    done = prism(*order, cwd=folder)
    assert done.code == 0, done.stderr
    folder.joinpath("shown").write_text(done.stdout)
    return folder


def test_every_wrong_answer_has_a_cause_and_the_causes_are_the_worlds(attributed):
    samples = {line["id"]: line for line in lines(attributed / "wrong/samples-sft.jsonl")}
    wrong = [
        (line["id"], response)
        for line in samples.values()
        for response in (line["greedy"], *line["samples"])
        if response["accuracy"] == 0
    ]
    found = lines(attributed / "wrong/attribution-sft.jsonl")
    assert len(found) == len(wrong) > 40
    agreed = Counter()
    for line in found:
        row = samples[line["id"]]
        response = row["greedy"] if line["decoding"] == "greedy" else row["samples"][line["number"]]
        if not response["well_formed"]:
            true = "format"
        elif response["perception"]:
            true = "reasoning"
        elif response["reasoning"]:
            true = "perception"
        else:
            continue  # whether what it saw wrong mattered is not in the samples file
        agreed[line["cause"] == true] += 1
    assert agreed.total() > 30
    assert agreed[True] / agreed.total() >= 0.9


def test_a_killed_attribution_continues(attributed):
    kept = (attributed / "kept").read_text()
    assert kept.count("\n") == 32
    assert (attributed / "wrong/retries-sft.jsonl").read_text().startswith(kept)


def test_shares_stand_in_the_summary_and_on_the_terminal(attributed):
    found = json.loads((attributed / "wrong/summary.json").read_text())["attribution"]
    sampled = next(one for one in found if (one["run"], one["decoding"]) == ("sft", "sampled"))
    assert sum(share["value"] for share in sampled["causes"].values()) == pytest.approx(1)
    assert "wrong because of" in (attributed / "shown").read_text()


def test_rows_of_which_nobody_tells_what_they_show_are_counted_not_guessed(prism, trained, attributed):
    from prism_cli.worlds import world

    (attributed / "rows/img").mkdir(parents=True)
    rows, truths = [], {}
    for i, example in enumerate(world("shapes").examples("test", 12, seed=3)):
        example.image.save(attributed / f"rows/img/{i}.png")
        rows.append({"id": str(i), "question": example.question, "image": f"img/{i}.png", "answer": "a wall"})
        truths[str(i)] = example.answer
    (attributed / "rows/test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["samples=0", "max_response_tokens=48", "batch_size=16", "--data", "rows/test.jsonl", "--attribute"]
    done = prism("eval", trained, *words, "--output", "untold", cwd=attributed)
    assert done.code == 0, done.stderr
    untold = [line["cause"] for line in lines(attributed / "untold/attribution-sft.jsonl")]
    assert len(untold) == 12
    assert set(untold) <= {"unknown", "format"}
    again = prism("eval", trained, *words, "teacher={type: embedded}", "--output", "doubted", cwd=attributed)
    assert again.code == 0, again.stderr
    doubted = [line for line in lines(attributed / "doubted/attribution-sft.jsonl") if line["cause"] != "format"]
    # Where the policy and the world's oracle, which knows the truth, agree against the reference, that one is doubted.
    agreeing = {line["id"]: line["answer"] == truths[line["id"]] for line in doubted}
    assert {line["id"]: line["cause"] == "verifier" for line in doubted} == agreeing
    assert 0 < sum(agreeing.values()) < 12
