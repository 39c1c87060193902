"""What a user may get wrong, and that each is told in one error and one hint, with the right exit code."""

import json
import shutil
import signal
import socket

import pytest
from PIL import Image

from prism_cli.assembly.endpoint import world_app
from prism_cli.assembly.response import grammar_of
from prism_cli.recipes.sections import ResponseSection
from prism_cli.teacher.server import ServedEndpoint

GRAMMAR = grammar_of(ResponseSection())
WELL_FORMED = "<caption>a</caption><think>b</think><answer>c</answer>"
ROLL = "max_steps=2 eval_data=null checkpoint.evaluate_every=null prompts_per_step=2 rollouts=4 micro_batch=8"
ALIGN = f"align tiny {ROLL} discriminator.warmup.pairs=16 discriminator.warmup.held_out=4 --from TRAINED"
MANY = "prompts_per_step=32 micro_batch=128"
UNTAUGHT = ALIGN.replace("--from TRAINED", "model={type:\u00a0tiny} max_response_tokens=24 max_prompt_tokens=400")
SFT = "sft tiny max_steps=2 eval_data=null checkpoint.evaluate_every=null batch_size=8 model.hidden=64"


@pytest.fixture
def place(trained, tmp_path):
    """A folder with all that the commands below trip over."""
    files = {
        "broken.yaml": "data: {type: world\nmax_steps: 3\n",
        "list.yaml": "- a\n- b\n",
        "twice.yaml": "seed: 1\nseed: 2\n",
        "question.jsonl": '{"question": "what is at b2 ?"}\n',
        "outside.jsonl": '{"question": "what is at b2 ?", "image": "../../etc/passwd", "answer": "7"}\n',
        "broken.jsonl": '{"question": \n',
        "a/rows.jsonl": f'{{"question": "what is at b2 ?", "teacher_response": "{WELL_FORMED}"}}\n',
        "b/rows.jsonl": f'{{"question": "what is at b3 ?", "teacher_response": "{WELL_FORMED}"}}\n',
        "discriminator/discriminator.json": '{"kind": "text_only", "readout": "mean", "dropout": 0.1}',
        "last/discriminator.json": '{"kind": "dense", "readout": "last", "dropout": 0.1}',
        "mixed.jsonl": '{"question": "a1 ?", "image": "red.png", "answer": "7"}\n{"question": "a1 ?", "answer": "7"}\n',
        "in_the_way": "",
        "damaged.sqlite": "no database" * 200,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(trained, tmp_path / "damaged")
    (tmp_path / "damaged/model/model.safetensors").write_bytes(b"cut short")
    shutil.copytree(trained, tmp_path / "other")
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    (tmp_path / "no_run").mkdir()
    (tmp_path / "no_run/cat.png").write_text("")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def endpoint():
    """A real endpoint that wants a key, and the address of none."""
    with ServedEndpoint(world_app("shapes", "exact", GRAMMAR, api_key="right")) as served, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        yield {"SERVED": served.url, "NOBODY": f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"}


# Command line, exit code, what the error names, what the hint names.
CASES = {
    "no such recipe": ("sft nothing.yaml", 2, "nothing.yaml", "tiny"),
    "recipe is broken YAML": ("sft broken.yaml", 2, "broken.yaml:", ""),
    "recipe is a list": ("sft list.yaml", 2, "list.yaml:1", ""),
    "a key twice": ("sft twice.yaml", 2, "twice.yaml:2: seed", "one"),
    "unknown key": ("sft tiny max_stepz=3", 2, "did you mean max_steps", ""),
    "wrong type": ("sft tiny optimizer.learning_rate=fast", 2, "optimizer.learning_rate", ""),
    "out of range": ("sft tiny max_steps=0", 2, "max_steps", ""),
    "a trainer option of the stage's": ("sft tiny trainer.max_steps=3", 2, "trainer.max_steps", ""),
    "a URL for the embedded teacher": ("align tiny teacher.endpoint=http://x/v1", 2, "teacher", ""),
    "two starts": ("sft --model MODEL --from TRAINED", 2, "keep one", ""),
    "two grammars": ("sft tiny --from TRAINED model=null", 2, "come with the run in `from`", ""),
    "rollouts that don't divide": (f"{ALIGN} micro_batch=7", 2, "= 8 can't be cut into micro_batch", "divide"),
    "best by nothing": (f"{SFT} checkpoint.best_by=loss", 2, "best_by", "evaluate_every"),
    "evaluation without data": (f"{SFT} checkpoint.evaluate_every=2", 2, "eval_data", "eval_data"),
    "no data": ("sft --model MODEL", 2, "no data", "--data"),
    "no model": ("sft --data question.jsonl", 2, "no model to start from", "--model"),
    "no run": ("align tiny --from runs/nothing", 1, "no run folder runs/nothing", "prism sft"),
    "no such checkpoint": ("rl tiny --from TRAINED@7", 1, "no complete checkpoint of step 7", "350"),
    "nothing to evaluate": ("eval tiny", 2, "no run to evaluate", "prism eval"),
    "nothing to continue": (f"{SFT} --resume", 1, "no run to continue", "--resume"),
    "no model folder": ("sft tiny model.type=pretrained model.path=./none", 2, "none", ""),
    "a damaged model": (f"rl tiny {ROLL} --from damaged", 2, "can't load a vision-language model", "model"),
    "no data file": ("sft tiny --data ./none.jsonl", 1, "none.jsonl", "--data"),
    "broken data": (f"{SFT} --data broken.jsonl", 1, "broken.jsonl:1: row: it is not JSON", "prism data check"),
    "a picture outside": (
        f"{SFT} --data outside.jsonl",
        1,
        "outside.jsonl:1: image: '../../etc/passwd' leaves",
        "prism data check",
    ),
    "nothing to learn": (f"{SFT} --data question.jsonl", 1, "question.jsonl:1: demonstration", "data check"),
    "nothing to verify": (
        f"rl tiny {ROLL} --data question.jsonl --from TRAINED",
        1,
        "question.jsonl:1: answers: there is none",
        "data check",
    ),
    "weights of no part": (
        f"{ALIGN} advantage.weights={{perception:\u00a01.0}}",
        2,
        "advantage.weights names perception; the taught parts are perception, reasoning",
        "each of them",
    ),
    "no teacher": ("align --data question.jsonl --from TRAINED", 2, "has no teacher", "--teacher-endpoint"),
    "no teacher answers": (
        f"{ALIGN} teacher={{type:\u00a0dataset}}",
        1,
        "16 of 16 rows have no teacher_response",
        "--teacher",
    ),
    "two rows of one id": (
        "align --from TRAINED prompts_per_step=1 --data a/rows.jsonl "
        "eval_data={path:\u00a0b/rows.jsonl} teacher={type:\u00a0dataset}",
        *(1, "two rows have the id rows-1", "id"),
    ),
    "too long a row": (f"{SFT} max_tokens=20", 1, "shapes-train-0-0 (", "max_tokens"),
    "too long a prompt": (f"{ALIGN} max_prompt_tokens=8", 1, "shapes-train-1-0 (", "max_prompt_tokens"),
    "no discriminator": (f"{ALIGN} discriminator.path=empty", 1, "empty: no discriminator here", "prism align"),
    "a discriminator of another kind": (
        f"{ALIGN} discriminator.path=discriminator",
        2,
        "has type 'text_only'",
        "type to text_",
    ),
    "one read elsewhere": (f"{ALIGN} discriminator.path=last", 2, "has readout 'last', the recipe 'mean'", "to last"),
    "too few rows to align": (f"{ALIGN} {MANY}", 1, "16 rows don't fill a step of 32", "more rows"),
    "too few rows for rl": (f"rl tiny {ROLL} {MANY} --from TRAINED", 1, "16 rows don't fill a step of 32", "more rows"),
    "mixed rows to align": (f"{ALIGN} --data mixed.jsonl", 1, "1 of 2 rows have no picture, the first is mixed-2", ""),
    "mixed rows for rl": (f"rl tiny {ROLL} --data mixed.jsonl --from TRAINED", 1, "1 of 2 rows have no picture", ""),
    "a policy that can't speak": (f"{UNTAUGHT}", 1, "0 teacher answers and 20 policy samples", "train SFT longer"),
    "a file in the way": (f"{SFT} --output in_the_way/run", 1, "can't write the run folder", "--output"),
    "a folder that can't be written": (f"{SFT} --output /proc/run", 1, "can't write the run folder", "--output"),
    "somebody's files": (f"{SFT} --output no_run --fresh", 1, "not a run folder", "--output"),
    "a run of another recipe": (f"{SFT} --output other", 1, "max_steps: 350 there, 2 now", "--fresh"),
    "a run of another stage": (f"rl tiny {ROLL} --from TRAINED --output other", 1, "run of `prism sft`", "--output"),
    "a loss that is no number": (f"{SFT} max_steps=4 optimizer.learning_rate=1e30", 1, "loss is nan", "learning_rate"),
    "nobody at the endpoint": (f"{ALIGN} TEACHER=NOBODY", 1, "127.0.0.1", "endpoint"),
    "the wrong key": (f"{ALIGN} TEACHER=SERVED", 1, "key", "OPENAI_API_KEY"),
    "a damaged store": (f"{ALIGN} TEACHER=SERVED teacher.store=damaged.sqlite", 1, "damaged.sqlite", "move"),
}


@pytest.mark.parametrize(("line", "code", "error", "hint"), CASES.values(), ids=CASES)
def test_is_told_in_one_error_and_one_hint(line, code, error, hint, prism, trained, place, endpoint):
    # Where a line names no rows of its own, a few of the world's do.
    few = " data.size=16" if " tiny " in line and "--data" not in line else ""
    words = (line + few).replace("TRAINED", str(trained)).replace("MODEL", str(trained / "model"))
    for name, url in endpoint.items():
        words = words.replace(f"TEACHER={name}", f"teacher={{type:\u00a0openai,endpoint:\u00a0'{url}'}}")
    arguments = [word.replace("\u00a0", " ") for word in words.split(" ")]
    done = prism(*arguments, cwd=place, env={"OPENAI_API_KEY": "wrong"})
    assert done.code == code, done
    assert "Traceback" not in done.stderr
    assert "finished" not in done.stdout
    starts = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert starts == ["error", "hint"], done.stderr
    found, advice = done.stderr.split("\nhint:")
    assert error in found
    assert hint in advice


def test_a_budget_that_is_reached_has_its_own_exit_code_and_keeps_what_was_paid(prism, trained, tmp_path):
    with ServedEndpoint(world_app("shapes", "exact", GRAMMAR)) as served:
        teacher = f"teacher={{type: openai, endpoint: '{served.url}', check: false, max_calls: 3}}"
        order = [*ALIGN.replace("TRAINED", str(trained)).split(), "data.size=16", teacher]
        done = prism(*order, cwd=tmp_path, env={"OPENAI_API_KEY": "any"})
        assert done.code == 3, done
        assert "max_calls" in done.stderr
        assert "Traceback" not in done.stderr
        assert prism(*order, cwd=tmp_path, env={"OPENAI_API_KEY": "any"}).code == 3, "a cap holds over restarts"
        # A larger budget continues: it is no part of what a run is.
        more = prism(*order[:-1], teacher.replace("3}", "300}"), cwd=tmp_path, env={"OPENAI_API_KEY": "any"})
        assert more.code == 0, more.stderr
    # All 16 rows were asked about, each once, over three starts.
    assert json.loads((tmp_path / "runs/align/teacher.json").read_text())["calls"] == 16


def test_a_cap_holds_over_a_start_that_was_killed(prism, trained, tmp_path):
    # The warm-up asks about 8 rows, the game's two steps about all 16.
    game = "prompts_per_step=8 rollouts=2 micro_batch=16 max_response_tokens=32 discriminator.warmup.pairs=4"
    order = [*ALIGN.replace("TRAINED", str(trained)).split(), "data.size=16", *game.split()]
    with ServedEndpoint(world_app("shapes", "exact", GRAMMAR)) as served:
        order.append(f"teacher={{type: openai, endpoint: '{served.url}', check: false, max_calls: 9}}")
        training = ("prism_cli.assembly.warmup:train_discriminator", 1)
        killed = prism(*order, cwd=tmp_path, env={"OPENAI_API_KEY": "any"}, kill=training)
        assert killed.code == -signal.SIGKILL
        assert json.loads((tmp_path / "runs/align/teacher.json").read_text())["calls"] == 8
        done = prism(*order, cwd=tmp_path, env={"OPENAI_API_KEY": "any"})
    assert done.code == 3, done
    assert json.loads((tmp_path / "runs/align/teacher.json").read_text())["calls"] == 9


def test_what_a_diverged_run_had_is_kept(prism, tmp_path):
    order = [*SFT.replace("max_steps=2", "max_steps=6").split(), "data.size=16", "log_every=1"]
    order.append("optimizer.learning_rate=1e30")
    done = prism(*order, cwd=tmp_path)
    assert done.code == 1
    assert json.loads((tmp_path / "runs/sft/run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "runs/sft/model").exists()
