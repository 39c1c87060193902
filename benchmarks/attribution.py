"""Is the cause of a wrong answer found? Policies are taught to see badly, to reason badly, or both; the world knows.

Without an argument a policy is trained first; with one, the faults are taught to the named run. Minutes on an idle
CPU core.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from prism_cli.assembly.response import grammar_of
from prism_cli.evaluation.attribution import CAUSES, Reread, Tried, Wrong, cause_of
from prism_cli.recipes.sections import ResponseSection
from prism_cli.rewards.accuracy import is_correct
from prism_cli.worlds import world
from prism_cli.worlds.questions import NOTHING, answer_from, read_question, reason
from prism_cli.worlds.scenes import Scene, caption, corrupt, read_caption

TAUGHT, ASKED, STEPS = 4000, 500, 250
FALSE_REFERENCES = 0.05
UNREADABLE = "unreadable caption"
GRAMMAR = grammar_of(ResponseSection())
SHAPES = world("shapes")

# Planted faults -------------------------------------------------------------------------------------------------------

_TURNED = {"square": "triangle", "triangle": "circle", "circle": "square"}
_MIRRORED = str.maketrans("ac", "ca")
_MISCOUNTED = {"square": 3, "triangle": 4}


def bad_eyes(scene: Scene) -> Scene:
    """As seen by who takes every shape in column c for another."""
    return {cell: _turned(thing) if cell[0] == "c" else thing for cell, thing in scene.items()}


def _turned(thing: str) -> str:
    colour, shape = thing.split()
    return f"{colour} {_TURNED[shape]}"


def bad_head(scene: Scene, question: str) -> tuple[str, str]:
    """Steps and answer of who looks things up in the mirrored column, and takes squares' corners for triangles'."""
    asked = read_question(question)
    if asked.target is None:
        shapes = [scene.get(cell, NOTHING).split()[-1] for cell in asked.cells]
        a, b = (_MISCOUNTED.get(shape, 0) for shape in shapes)
        looked_up = [f"{c} holds {s} {n}" for c, s, n in zip(asked.cells, shapes, (a, b), strict=True)]
        return " , ".join([*looked_up, f"{a} plus {b} is {a + b}"]), str(a + b)
    answer = scene.get(asked.target.translate(_MIRRORED), NOTHING)
    found = f"{asked.target} holds {answer}"
    return f"{asked.direction} {asked.cells[0]} is {asked.target} , {found}" if asked.direction else found, answer


def chance_eyes(scene: Scene) -> Scene:
    """As seen by who takes three in five things for others, now so, now so: only its caption says what it saw."""
    return corrupt(scene, 0.6, random.Random(caption(scene)))


def _same(scene: Scene) -> Scene:
    return scene


FAULTS: dict[str, tuple[Callable[[Scene], Scene], Callable[[Scene, str], tuple[str, str]]]] = {
    "eyes": (bad_eyes, reason),
    "head": (_same, bad_head),
    "both": (bad_eyes, bad_head),
    "chance": (chance_eyes, reason),
}


def write_data(folder: Path) -> dict[str, dict[str, Any]]:
    """Demonstrations of each fault and the test rows, some with a false reference; gives what is true of the latter."""
    (folder / "img").mkdir(parents=True)
    demonstrations = {name: [] for name in FAULTS}
    for number, example in enumerate(SHAPES.examples("train", TAUGHT, seed=11)):
        example.image.save(folder / f"img/train{number}.png")
        for name, (eyes, head) in FAULTS.items():
            seen = eyes(json.loads(example.truth)["objects"])
            think, answer = head(seen, example.question)
            text = GRAMMAR.render({"caption": caption(seen), "think": think, "answer": answer})
            demonstrations[name].append(
                {"question": example.question, "image": f"img/train{number}.png", "response": text}
            )
    rng, rows, truths = random.Random(0), [], {}
    for number, example in enumerate(SHAPES.examples("test", ASKED, seed=12)):
        example.image.save(folder / f"img/test{number}.png")
        false = rng.random() < FALSE_REFERENCES
        other = {"corners": "14"}.get(read_question(example.question).kind, "a wall")
        row = {"id": example.id, "question": example.question, "image": f"img/test{number}.png"}
        rows.append({**row, "answer": other if false else example.answer, "caption": example.caption})
        truths[example.id] = {**rows[-1], "true": example.answer, "false": false}
    for name, lines in {**demonstrations, "test": rows}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return truths


# Truth and verdict ----------------------------------------------------------------------------------------------------


def truth_of(text: str, known: Mapping[str, Any]) -> str | None:
    """Why a response is wrong, from the world's rules alone; None where its caption can't be read."""
    response = GRAMMAR.parse(text)
    if response.answer is None:
        return "format"
    if known["false"]:
        return "verifier"
    seen = read_caption(response.blocks["caption"])
    if seen is None:
        return None
    from_caption = answer_from(seen, known["question"])
    if from_caption == known["true"]:
        return "reasoning"
    return "perception" if response.answer == from_caption else "both"


def confusions(folder: Path, run: str, truths: Mapping[str, Any]) -> dict[tuple[str, str], Counter[tuple[str, str]]]:
    """(who was asked, decoding) → (true cause, found cause) → wrong answers of a run in a finished evaluation."""
    samples = {line["id"]: line for line in read_lines(folder / f"samples-{run}.jsonl")}
    counts: dict[tuple[str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
    for line in read_lines(folder / f"attribution-{run}.jsonl"):
        row, known = samples[line["id"]], truths[line["id"]]
        text = (row["greedy"] if line["decoding"] == "greedy" else row["samples"][line["number"]])["text"]
        true, response = truth_of(text, known) or UNREADABLE, GRAMMAR.parse(text)
        seen = response.blocks.get("caption")
        # No teacher: neither rereads nor speaks against the reference.
        case = Wrong(known["question"], (known["answer"],), response.answer, seen, known["caption"])
        tried = Tried(*(line[way] for way in Tried._fields))
        counts["policy and exact teacher", line["decoding"]][true, line["cause"]] += 1
        counts["policy alone", line["decoding"]][true, cause_of(case, tried, is_correct)] += 1
        slipping = cause_of(case, tried, is_correct, slipping_reread(case))
        counts["policy and teacher who slips", line["decoding"]][true, slipping] += 1
    return counts


def slipping_reread(case: Wrong) -> Reread | None:
    """What the weak_reasoning oracle, who slips in 40 % of its answers, makes of the captions."""
    if case.caption is None or case.told is None or read_caption(case.caption) is None:
        return None
    own, told = (
        SHAPES.oracle(case.question, None, "weak_reasoning", told=caption)["answer"]
        for caption in (case.caption, case.told)
    )
    return Reread(own, told)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def show(title: str, counts: Counter[tuple[str, str]]) -> None:
    """Prints a confusion table and the share of right labels with Wilson's interval."""
    true = [cause for cause in (*CAUSES, UNREADABLE) if any(a == cause for a, _ in counts)]
    print(f"\n{title}\n\n| true cause | {' | '.join(CAUSES)} |\n|---|{'---|' * len(CAUSES)}")
    for a in true:
        print(f"| {a} | {' | '.join(str(counts[a, b] or '') for b in CAUSES)} |")
    known = Counter({pair: n for pair, n in counts.items() if pair[0] in CAUSES})
    decided = Counter({pair: n for pair, n in known.items() if pair[1] != "unknown"})
    for of, among in (("wrong answers", known), ("those not left unknown", decided)):
        hits, n = sum(count for (a, b), count in among.items() if a == b), among.total()
        if n:
            ends = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
            print(f"\nright: {hits} of {n} {of}, {hits / n:.1%} ({ends.low:.1%} to {ends.high:.1%})")


# Running --------------------------------------------------------------------------------------------------------------


def prism(folder: Path, *words: str) -> None:
    """Runs a command in the folder, quietly."""
    done = subprocess.run([sys.executable, "-m", "prism_cli", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])


def train(folder: Path, start: Path | None) -> None:
    """Trains the policies into runs/."""
    if start is None:
        data = ["teacher={type: embedded}", "eval_data=null", "checkpoint.evaluate_every=null"]
        prism(folder, "sft", "tiny", *data, "--output", "runs/start")
        start = folder / "runs/start"
    optimizer = ["optimizer.learning_rate=1e-3", "optimizer.warmup_fraction=0.05", "optimizer.beta2=0.98"]
    length = [f"max_steps={STEPS}", "batch_size=32", "max_tokens=128", f"checkpoint.every={STEPS}"]
    for name in FAULTS:
        taught = ["--from", str(start), "--data", f"data/{name}.jsonl", "--output", f"runs/{name}"]
        prism(folder, "sft", *taught, *length, *optimizer)
        print(f"trained: {name}", flush=True)


def main() -> None:
    """Prints a table a policy, who was asked and decoding, and the sums; those with both faults are the fewest."""
    start = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truths = write_data(folder / "data")
        train(folder, start)
        total: dict[tuple[str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
        for name in FAULTS:
            words = ["teacher={type: embedded}", "samples=1", "attribution=all", "max_response_tokens=64"]
            words += ["batch_size=128", f"data.limit={ASKED // 4 if name == 'both' else ASKED}"]
            output = f"runs/eval-{name}"
            prism(folder, "eval", f"runs/{name}", "--data", "data/test.jsonl", *words, "--output", output)
            for asked, counts in confusions(folder / output, name, truths).items():
                total[asked] += counts
                show(f"taught {name}: {', '.join(asked)}", counts)
        for asked, counts in total.items():
            show(f"**all: {', '.join(asked)}**", counts)


if __name__ == "__main__":
    main()
