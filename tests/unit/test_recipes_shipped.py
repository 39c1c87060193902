"""The recipes users run first, and the page that documents every key."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from prism_cli.planning.job import GB, Device
from prism_cli.recipes import document
from prism_cli.recipes.load import load_recipe, load_step
from prism_cli.recipes.pipelines import steps_of
from prism_cli.recipes.sources import shipped, stage_of
from prism_cli.recipes.stages import RECIPES
from prism_cli.stages.plan import plan_pipeline, plan_stage

ROOT = Path(__file__).parents[2]


def test_every_yaml_file_named_after_a_stage_is_shipped():
    assert {"tiny/sft", "tiny/align", "tiny/rl", "tiny/eval", "tiny/pipeline"} <= set(shipped())
    assert all(path.is_file() for path in shipped().values())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_loads(name):
    path = shipped()[name]
    recipe = load_recipe(stage_of(path), path)
    assert type(recipe) is RECIPES[stage_of(path)]
    for step in steps_of(recipe):
        assert type(load_step(step, path.parent)) is RECIPES[step.stage]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_begins_with_the_command_and_what_it_needs(name):
    first, second = shipped()[name].read_text(encoding="utf-8").splitlines()[:2]
    commands = "sft|align|rl|eval|drift|collect|data curate|discriminator warmup|run|compare"
    assert re.match(rf"# (.* )?prism ({commands}) ", first)
    assert second.startswith("# Needs ")


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("align.yaml", "align"),
        ("pipeline.yaml", "run"),
        ("rl_dapo.yaml", "rl"),
        ("weak-sft.yaml", "sft"),
        ("zero3.yaml", None),
    ],
)
def test_the_stage_stands_in_the_files_name(file, stage):
    assert stage_of(Path(file)) == stage


# Real models ----------------------------------------------------------------------------------------------------------

SIZES = {"qwen3_vl_4b": 4_437_815_808, "qwen3_vl_8b": 8_767_123_696}
GPU = Device(True, 80 * GB)
ENDPOINT = ["align.teacher.endpoint=http://127.0.0.1:1/v1"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The files that the recipes of real models name, a row each, in the current folder."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    Image.new("RGB", (32, 32)).save("data/1.png")
    response = "<caption>a</caption><think>b</think><answer>1</answer>"
    row = {"image": "1.png", "question": "How many?", "answer": "1", "response": response}
    for name in ("sft", "align", "rl", "test"):
        Path(f"data/{name}.jsonl").write_text(json.dumps(row))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("road", ["", "/4gpu", "/1gpu"])
def test_a_road_of_real_models_is_checked_offline(size, road, rows):
    from prism_cli.stages import run

    path = shipped()[f"{size}{road}/pipeline"]
    assert [step for step, _ in run.check(load_recipe("run", path, ENDPOINT), path.parent)] == [
        "sft",
        "align",
        "rl",
        "eval",
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["sft", "warmup", "align", "rl", "rl_dapo", "rl_gspo", "collect"])
def test_a_stage_of_real_models_is_checked_offline(size, name, rows):
    stage = name.partition("_")[0]
    start = [] if stage in ("sft", "collect") else ["model.path=Qwen/Qwen3-VL-4B-Instruct"]
    teacher = ["teacher.endpoint=http://127.0.0.1:1/v1"] if stage in ("align", "collect") else []
    recipe = load_recipe(stage, f"{size}/{name}", [*start, *teacher])
    assert import_module(f"prism_cli.stages.{stage}").check(recipe)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("road", ["", "/4gpu", "/1gpu"])
def test_every_step_of_a_road_fits_into_gpus_of_80_gb(size, road):
    path = shipped()[f"{size}{road}/pipeline"]
    align = load_step(load_recipe("run", path).steps[1], path.parent)
    # Where align leaves it open, what is installed decides.
    backends = ["transformers", "vllm"] if align.generation is None else [align.generation.type]
    for backend in backends:
        plans = plan_pipeline(load_recipe("run", path, [f"align.generation.type={backend}"]), GPU, path.parent)
        assert {one.step: round(one.peak / GB) for one in plans if not one.fits} == {}
        assert [one.step for one in plans] == ["sft", "align", "rl"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["warmup", "rl_dapo"])
def test_a_stage_that_no_road_has_fits_too(size, name):
    stage = name.partition("_")[0]
    start = load_recipe("sft", size).model.path
    one = plan_stage(stage, load_recipe(stage, f"{size}/{name}", [f"model.path={start}"]), GPU)
    assert one.fits, one.peak / GB


def test_the_memory_in_comments_is_the_planned_one():
    for size in SIZES:
        path = shipped()[f"{size}/1gpu/pipeline"]
        align = plan_pipeline(load_recipe("run", path), GPU, path.parent)[1]
        assert f"the plan comes to {align.peak / GB:.0f}." in path.read_text(encoding="utf-8")
        start = load_recipe("sft", size).model.path
        slow = load_recipe("rl", f"{size}/rl", [f"model.path={start}", "generation.type=transformers"])
        rl = plan_stage("rl", slow, GPU)
        cache = f"would need {rl.phases['generation'].parts['KV cache'] / GB:.0f} GB for the cache"
        assert cache in shipped()[f"{size}/rl"].read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "count"), SIZES.items())
def test_the_policy_has_the_size_its_recipe_says(size, count):
    recipe = load_recipe("sft", size)
    policy = on_meta(recipe.model.path)
    assert policy.num_parameters() == count
    text = shipped()[f"{size}/sft"].read_text(encoding="utf-8")
    assert f"all {count / 1e9:.1f} billion weights" in text
    assert f"takes {16 * count // 10**9} GB before activations" in text


def test_adapters_are_on_all_linear_layers_of_the_language_model_and_nowhere_else():
    import torch
    from peft import get_peft_model

    from prism_cli.assembly.policy import lora_config

    path = shipped()["qwen3_vl_8b/1gpu/pipeline"]
    step = load_recipe("run", path).steps[0]
    policy = on_meta(load_recipe("sft", "qwen3_vl_8b").model.path)
    layers = policy.config.text_config.num_hidden_layers
    with torch.device("meta"):
        adapted = get_peft_model(policy, lora_config(load_step(step, path.parent)))
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(trained) == layers * 7 * 2
    assert all(".language_model.layers." in name and ".lora_" in name for name in trained)


def test_the_discriminator_is_upcycled_to_the_papers_shape():
    recipe = load_recipe("align", "qwen3_vl_4b")
    made = discriminator_on_meta(recipe)
    text = made.body.config.text_config
    assert (text.num_hidden_layers, text.num_experts, text.num_experts_per_tok) == (28, 4, 2)
    experts = made.body.language_model.layers[0].mlp.experts
    assert tuple(experts.gate_up_proj.shape) == (4, 2 * 6144, 2048)
    assert sum(weight.numel() for weight in made.parameters()) == 5_298_655_232 + 2048
    assert f"{5_298_655_232 / 1e9:.1f} billion" in shipped()["qwen3_vl_4b/warmup"].read_text(encoding="utf-8")
    assert all(weight.requires_grad for weight in made.parameters())


def test_a_discriminator_that_does_not_see_does_not_train_its_vision_tower():
    made = discriminator_on_meta(load_recipe("align", "qwen3_vl_8b", ["discriminator.type=text_only"]))
    frozen = {name for name, weight in made.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in made.named_parameters() if name.startswith("body.visual.")} != set()


def on_meta(reference):
    """The model of a recipe without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from prism_cli.model_configs import config_folder

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(config_folder(reference)))


def discriminator_on_meta(recipe):
    """A recipe's discriminator without memory for its weights."""
    import torch
    from transformers import AutoConfig

    from prism_cli.discriminator.create import mixture
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.discriminator.settings import Upcycling
    from prism_cli.model_configs import config_folder

    section = recipe.discriminator
    if section.type == "moe":
        config = AutoConfig.from_pretrained(config_folder(section.base))
        body = mixture(config, Upcycling(section.experts, section.top_k, section.noise, section.noise_scale))
    else:
        body = on_meta(section.base).model
    with torch.device("meta"):
        return Discriminator(body, ("perception", "reasoning"), 151645, section.type, section.readout, section.dropout)


# The page of keys -----------------------------------------------------------------------------------------------------


def test_the_page_of_keys_is_current():
    assert (ROOT / document.PAGE).read_text(encoding="utf-8") == document.page()


def test_every_key_of_every_section_is_documented():
    rows = [line for line in document.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_link_of_the_page_has_its_heading():
    text = document.page()
    headings = {re.sub(r"[.()]", "", title).replace(" ", "-") for title in re.findall(r"^## (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= headings
    assert len(RECIPES) == len(re.findall(r"^## .*\.yaml$", text, re.M))
