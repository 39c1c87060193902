"""An exported model: what opens it, what its card says and what it never tells, and the hub it is pushed to."""

import base64
import copy
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from tests.tiny import tiny_policy
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from prism_cli.adapters import has_adapters, merge_adapter, save_adapter
from prism_cli.assembly.policy import lora_config
from prism_cli.data.sources import is_local_name
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.models import Policy
from prism_cli.publishing.lineage import evaluations_of, lineage_of, publishable
from prism_cli.publishing.model_card import model_card
from prism_cli.recipes.identity import to_dict, to_yaml
from prism_cli.recipes.load import load_recipe
from prism_cli.responses import Grammar, Part
from prism_cli.runs.folder import Run, versions
from prism_cli.runs.references import read_manifest
from prism_cli.stages.export import Export, check, run

GRAMMAR = Grammar({"perception": Part(("caption",), 0.5), "reasoning": Part(("think", "answer"), 0.5)})
SECRET = "secret-host.internal"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def policy():
    model, processor = tiny_policy()
    return Policy(copy.deepcopy(model), copy.deepcopy(processor), GRAMMAR, "Answer in form .")


def record(place, stage, *overrides, recipe="tiny", source=None, metrics=(), **more):
    """A run's folder as training leaves it, without a model."""
    resolved = load_recipe(stage, recipe, overrides)
    place.mkdir(parents=True)
    one = Run(place, {"stage": stage, "id": place.name, "name": place.parent.name, "created": "2026-01-01", **more})
    one.update(recipe=to_dict(resolved), seed=0, versions=versions(), status="finished", finished="2026-01-02")
    one.update(**{"from": source})
    (place / "recipe.yaml").write_text(to_yaml(resolved))
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return one


def sft_run(policy, *overrides, **more):
    one = record(Path("runs/tiny/sft"), "sft", *overrides, **more)
    policy.save(one.model)
    return one


def wanted(reference="runs/tiny/sft", output=None, dtype=None, repo=None):
    return Export(reference, None if output is None else Path(output), dtype, repo)


def logits(folder, **options):
    """What plain transformers makes of a folder, about one picture."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    content = [{"type": "image", "image": Image.linear_gradient("L").convert("RGB")}, {"type": "text", "text": "b2 ?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(**inputs).logits


# The folder -----------------------------------------------------------------------------------------------------------


def test_plain_transformers_opens_an_export_bit_equal(policy):
    one = sft_run(policy)
    output = run(wanted(dtype="float32"))
    assert output == Path("exports/tiny/sft")
    assert torch.equal(logits(output), logits(one.model))
    ours, theirs = (load_file(place / "model.safetensors") for place in (output, one.model))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((output / "response.json").read_text())["instruction"] == "Answer in form ."


def test_an_export_in_bfloat16_is_the_rounded_weights(policy):
    one = sft_run(policy)
    output = run(wanted(dtype="bfloat16"))
    ours, theirs = (load_file(place / "model.safetensors") for place in (output, one.model))
    assert all(torch.equal(ours[name], theirs[name].bfloat16()) for name in theirs)
    assert AutoConfig.from_pretrained(output).dtype == torch.bfloat16


def test_a_server_finds_all_it_needs_and_nothing_that_runs(policy):
    sft_run(policy)
    output = run(wanted())
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert not {"auto_map", "quantization_config"} & config.keys()
    generation = json.loads((output / "generation_config.json").read_text())
    assert generation["eos_token_id"] == policy.processor.tokenizer.eos_token_id
    assert {path.name for path in output.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("response.json", "prism.json", "README.md"),
    }
    assert {oct(path.stat().st_mode) for path in output.iterdir()} == {oct((output / "README.md").stat().st_mode)}


def test_a_second_chat_template_can_be_read_from_an_export(policy):
    one = sft_run(policy)
    templates = one.model / "additional_chat_templates"
    templates.mkdir()
    (templates / "tools.jinja").write_text("{{ messages }}")
    template = run(wanted()) / "additional_chat_templates" / "tools.jinja"
    assert template.read_text() == "{{ messages }}"
    assert template.parent.stat().st_mode & 0o111, "root reads what others can't enter"


def test_nothing_is_overwritten_and_the_same_export_is_not_written_twice(policy):
    sft_run(policy)
    output = run(wanted())
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert run(wanted()) == output
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="holds another export"):
        run(wanted(dtype="bfloat16"))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="mine holds something else"):
        run(wanted(output="mine"))
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_a_place_that_can_not_be_written_is_named(policy):
    sft_run(policy)
    Path("file").write_text("")
    with pytest.raises(CheckpointError, match="can't write file/export"):
        run(wanted(output="file/export"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [("runs/none", "no run folder"), ("runs/tiny/sft@7", "no complete checkpoint of step 7")],
)
def test_what_is_not_there_is_not_exported(policy, reference, message):
    sft_run(policy)
    with pytest.raises(CheckpointError, match=message):
        check(wanted(reference))


# Adapters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", [False, True])
def test_adapters_stand_on_the_language_model_and_on_the_eyes_only_if_wanted(policy, vision):
    from peft import get_peft_model

    config = lora_config(load_recipe("sft", "tiny", [f"lora={{rank: 2, vision: {str(vision).lower()}}}"]))
    model = get_peft_model(copy.deepcopy(policy.model), config)
    adapted = {re.sub(r"^base_model\.model\.|\.lora_A.*$", "", n) for n, _ in model.named_parameters() if "lora_A" in n}
    linear = {n for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    seen = {name for name in linear if ".visual." in name}
    assert seen
    assert adapted == (linear if vision else linear - seen)


def adapter_run(policy, source=None):
    """A run of adapters that are not zero, with a checkpoint of them alone."""
    from peft import get_peft_model

    one = record(Path("runs/tiny/rl"), "rl", "lora={rank: 2}", "from=runs/tiny/sft", source=source)
    config = lora_config(load_recipe("rl", one.folder / "recipe.yaml"))
    config.init_lora_weights = False
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(policy.model), config)
    folder = one.folder / "checkpoints/checkpoint-2"
    save_adapter(model, folder)
    policy.save_response_settings(folder)
    (folder / "complete.json").write_text("{}")
    policy.with_model(model.merge_and_unload()).save(one.model)
    return one


def test_a_checkpoint_of_adapters_is_exported_merged(policy):
    sft = sft_run(policy)
    one = adapter_run(policy, {"run": "runs/tiny/sft", "checkpoint": None, "finished": "2026-01-02"})
    output = run(wanted("runs/tiny/rl@2"))
    assert output == Path("exports/tiny/rl-2")
    ours, whole, start = (load_file(place / "model.safetensors") for place in (output, one.model, sft.model))
    assert ours.keys() == start.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    changed = [name for name in start if not torch.equal(ours[name], start[name])]
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)
    assert "checkpoint 2" in (output / "README.md").read_text()


def test_adapters_are_not_put_into_another_model_than_theirs(policy):
    sft_run(policy)
    adapter_run(policy, {"run": "runs/tiny/sft", "checkpoint": None, "finished": "2025-12-31"})
    with pytest.raises(CheckpointError, match="another state of runs/tiny/sft"):
        run(wanted("runs/tiny/rl@2"))
    assert not Path("exports").exists()


def test_saved_adapters_hold_nothing_else_and_come_back(policy, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = policy.with_model(copy.deepcopy(policy.model))
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert has_adapters(model)
    assert not has_adapters(policy.model)
    save_adapter(model, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert all("lora_" in name for name in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    again = merge_adapter(copy.deepcopy(policy.model), tmp_path / "adapter").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.merge_and_unload().state_dict().items())


def test_adapters_of_another_width_are_refused_in_one_line(policy, tmp_path):
    from peft import LoraConfig, get_peft_model

    from prism_cli.tiny_models.tiny import tiny_model

    other = tiny_model(policy.processor, hidden=32, layers=1, vision_hidden=32)
    save_adapter(get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"])), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="can't be put into their model") as caught:
        merge_adapter(copy.deepcopy(policy.model), tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_four_bits_are_refused_in_one_line_where_they_can_not_be_had():
    if torch.cuda.is_available():
        pytest.skip("this machine may have them")
    from prism_cli.assembly.policy import start_policy

    with pytest.raises(RecipeError, match=r"lora\.bits") as caught:
        start_policy(load_recipe("sft", "qwen3_vl_4b", ["lora={bits: 4}"]))
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    with pytest.raises(RecipeError, match="too small for 4 bits"):
        start_policy(load_recipe("sft", "tiny", ["lora={bits: 4}"]))


def test_adapters_beside_rounded_weights_are_held_in_float32(policy):
    from peft import get_peft_model

    from prism_cli.adapters import adapters_in_float32

    config = lora_config(load_recipe("sft", "tiny", ["lora={rank: 2}"]))
    model = get_peft_model(copy.deepcopy(policy.model), config).bfloat16()
    for rounded, expected in ((False, torch.bfloat16), (True, torch.float32)):
        model.base_model.model.is_loaded_in_4bit = rounded
        adapters_in_float32(model)
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {expected}
        assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_in_four_bits_the_vision_tower_is_not_rounded(policy):
    from transformers.quantizers.quantizers_utils import should_convert_module

    from prism_cli.adapters import VISION_TOWERS

    linear = [n for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear)]
    rounded = {name for name in linear if should_convert_module(name, [*VISION_TOWERS, "lm_head"])}
    assert rounded == {name for name in linear if ".language_model." in name}


# The card -------------------------------------------------------------------------------------------------------------


def chain(policy):
    """SFT from a hub model, then align, then RL, then an evaluation beside them."""
    start = ["model={path: own/base, revision: abc}", "data={path: own/demos@train}"]
    sft_run(
        policy, *start, metrics=[{"step": 2, "eval/loss": 0.5}, {"step": 4, "eval/loss": 0.25, "eval/runtime": 9.0}]
    )
    source = {"run": "runs/tiny/sft", "checkpoint": None, "finished": "2026-01-02"}
    teacher = f"teacher={{type: openai, model: big, endpoint: 'http://{SECRET}:8000/v1', api_key_env: MY_KEY}}"
    rows = f"data={{path: {Path.cwd()}/private rows/align.jsonl}}"
    align = record(Path("runs/tiny/align"), "align", "from=runs/tiny/sft", teacher, rows, source=source)
    source = {"run": "runs/tiny/align", "checkpoint": None, "finished": "2026-01-02"}
    rl = record(Path("runs/tiny/rl"), "rl", f"from={align.folder.absolute()}", source=source)
    policy.save(rl.model)
    judged = {"run": str(rl.folder), "checkpoint": None, "finished": "2026-01-02"}
    record(Path("runs/tiny/eval"), "eval", source={"runs": [judged]})
    measured = {"accuracy/greedy": {"value": 0.75, "low": 0.7, "high": 0.8, "n": 100}}
    summary = {"settings": {"questions": 100}, "runs": [{"id": "rl", "metrics": measured}]}
    Path("runs/tiny/eval/summary.json").write_text(json.dumps(summary))
    return rl


def test_a_card_tells_the_whole_road(policy):
    rl = chain(policy)
    text = model_card(rl, GRAMMAR.tags, is_local_name)
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": "own/base",
        "base_model_relation": "finetune",
        "datasets": ["own/demos"],
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["prism", "sft", "align", "rl"],
    }
    lineage = lineage_of(rl.folder)
    assert (lineage.start, [step.stage for step in lineage.steps]) == ("own/base at abc", ["sft", "align", "rl"])
    rows = [line for line in text.splitlines() if re.match(r"\| [0-3] \|", line)]
    assert "own/base at abc" in rows[0]
    assert "loss 0.25" in rows[1]
    assert "runtime" not in rows[1]
    assert "| big |" in rows[2]
    assert all(step.digest in row for step, row in zip(lineage.steps, rows[1:], strict=True))
    assert "| accuracy/greedy | 0.75 | 0.7 to 0.8 | 100 |" in text
    assert all(f"`<{tag}>`" in text for tag in ("caption", "think", "answer"))


def test_an_export_tells_no_path_address_or_key_name(policy, folder):
    chain(policy)
    output = run(wanted("runs/tiny/rl"))
    for path in output.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert [word for word in (str(folder), SECRET, "MY_KEY", str(Path.home())) if word in text] == [], path.name


def test_a_recipe_has_one_digest_on_all_machines():
    here = {"data": {"path": "/home/a/rows.jsonl"}, "output": "/home/a/runs", "seed": 1, "teacher": {"endpoint": "x"}}
    there = {"data": {"path": "/mnt/b/rows.jsonl"}, "output": None, "seed": 1, "teacher": {}}
    assert publishable(here) == publishable(there) == {"data": {"path": "rows.jsonl"}, "seed": 1, "teacher": {}}
    assert publishable({"model": {"path": "own/base"}, "instruction": "/ is a slash"}) == {
        "model": {"path": "own/base"},
        "instruction": "/ is a slash",
    }


def test_an_address_is_told_nowhere_not_even_of_an_option_that_is_passed_on():
    recipe = {"trainer": {"vllm_server_base_url": f"http://{SECRET}:8000", "run_name": "see https://example.org"}}
    recipe["data"] = {"path": "hf://datasets/own/rows"}
    assert publishable(recipe) == {
        "trainer": {"vllm_server_base_url": "an address", "run_name": "see https://example.org"},
        "data": {"path": "hf://datasets/own/rows"},
    }


def test_a_run_done_again_is_no_ancestor(policy):
    chain(policy)
    Run(Path("runs/tiny/sft"), read_manifest(Path("runs/tiny/sft"))).update(finished="2026-03-03")
    lineage = lineage_of(Path("runs/tiny/rl"))
    assert [step.stage for step in lineage.steps] == ["align", "rl"]
    assert "no record" in lineage.start


@pytest.mark.parametrize("finished", ["2026-03-03", None])
def test_an_evaluation_of_an_earlier_state_is_not_quoted(policy, finished):
    rl = chain(policy)
    assert len(list(evaluations_of(rl.folder, None))) == 1
    rl.update(finished=finished)
    assert list(evaluations_of(rl.folder, None)) == []


def test_held_out_metrics_are_those_of_the_exported_weights(policy):
    lines = [{"step": 2, "eval/loss": 0.5}, {"step": 4, "eval/loss": 0.75}]
    one = sft_run(policy, metrics=lines)
    assert lineage_of(one.folder, 2).steps[-1].held_out == {"loss": 0.5}
    assert lineage_of(one.folder).steps[-1].held_out == {"loss": 0.75}
    one.update(best={"checkpoint": "checkpoint-2", "metric": 0.5})
    assert lineage_of(one.folder).steps[-1].held_out == {"loss": 0.5}


def test_a_log_that_a_kill_cut_short_is_read_as_far_as_it_goes(policy):
    one = sft_run(policy, metrics=[{"step": 2, "eval/loss": 0.5}])
    with open(one.folder / "metrics.jsonl", "a") as log:
        log.write('{"step": 3, "eval/lo')
    assert lineage_of(one.folder, 2).steps[-1].held_out == {"loss": 0.5}


# The hub --------------------------------------------------------------------------------------------------------------

TOKEN = "hf_not_a_real_token"
PUSH = """
import sys
from pathlib import Path
from prism_cli.errors import PrismError
from prism_cli.publishing.hub import push
for repo in sys.argv[2:]:
    try:
        print(push(Path(sys.argv[1]), repo, {"run": {"id": "sft", "stage": "sft"}}))
    except PrismError as error:
        print(type(error).__name__, error, "|", error.hint)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; `own/taken` holds somebody's model, `own/closed` is not ours."""

    repos: dict[str, dict[str, bytes]]
    private: dict[str, bool]
    tokens: set[tuple[str | None, str]]

    def do_GET(self):
        self.tokens.add((self.headers.get("Authorization"), self.path))
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/(own/\w+)/tree/main", path):
            listed = self.repos[found[1]].items()
            return self.answer(200, [{"type": "file", "path": f, "size": len(c), "oid": "b" * 40} for f, c in listed])
        found = re.fullmatch(r"/api/models/(own/\w+)(/revision/main)?", path)
        if found and found[1] in self.repos:
            return self.answer(200, {"id": found[1], "sha": "a" * 40, "private": self.private[found[1]]})
        if found := re.fullmatch(r"/(own/\w+)/resolve/main/(.+)", path):
            content = self.repos[found[1]].get(found[2])
            return self.answer(404 if content is None else 200, content or b"")
        return self.answer(404, {"error": path})

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.split("?")[0]
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        self.tokens.add((self.headers.get("Authorization"), self.path))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        name = re.search(r"own/\w+", path)[0]
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self.answer(200, {"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"http://{self.headers['Host']}/{name}/commit/{'c' * 40}"
        return self.answer(200, {"commitUrl": url, "commitOid": "c" * 40, "pullRequestUrl": None})

    def create(self, order):
        name = f"{order.get('organization') or 'own'}/{order['name']}"
        if name == "own/closed":
            return self.answer(403, {"error": "You may not write here"})
        url = f"http://{self.headers['Host']}/{name}"
        if name in self.repos:
            return self.answer(409, {"error": "there already", "url": url})
        self.repos[name], self.private[name] = {}, order.get("private", False) or order.get("visibility") == "private"
        return self.answer(200, {"url": url, "id": name})

    def answer(self, code, content):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{"d" * 40}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """Pushes a folder to repositories of a hub on 127.0.0.1; gives what was said, a line each."""
    ours = json.dumps({"run": {"id": "sft", "stage": "sft"}}).encode()
    Hub.repos = {"own/taken": {"config.json": b"{}"}, "own/ours": {".gitattributes": b"", "prism.json": ours}}
    Hub.private, Hub.tokens = {"own/taken": True, "own/ours": False}, set()

    def push(folder, *repos):
        address = f"http://127.0.0.1:{server.server_address[1]}"
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", PUSH, str(folder), *repos],
            env={**os.environ, **settings, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout.splitlines()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield push
        server.shutdown()


def test_an_export_is_pushed_private_and_never_over_another_model(hub, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "README.md").write_text("---\ntags:\n- prism\n---\n# card\n")
    (export / "config.json").write_text('{"new": 1}')
    new, ours, taken, closed = hub(export, "own/new", "own/ours", "own/taken", "own/closed")
    assert re.fullmatch(r"pushed to http://127.0.0.1:\d+/own/new \(private: .*\)", new)
    assert Hub.private["own/new"] is True
    assert Hub.repos["own/new"] == {path.name: path.read_bytes() for path in export.iterdir()}
    assert ours.endswith("(public)")
    assert Hub.repos["own/ours"]["config.json"] == b'{"new": 1}'
    assert taken.startswith("RecipeError own/taken on the hub holds another model")
    assert Hub.repos["own/taken"] == {"config.json": b"{}"}
    assert closed.startswith("PrismError the hub did not take own/closed")
    assert "$HF_TOKEN" in closed
    # What is asked about our repositories carries the token from the environment; the rest is the library's own.
    assert {token for token, path in Hub.tokens if "own/" in path or "create" in path} == {f"Bearer {TOKEN}"}


def test_a_push_needs_a_token_and_a_name_before_anything_is_written(policy, monkeypatch):
    sft_run(policy)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(RecipeError, match="a token in \\$HF_TOKEN"):
        run(wanted(repo="own/new"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(RecipeError, match="'new' names no repository"):
        run(wanted(repo="new"))
    assert not Path("exports").exists()
