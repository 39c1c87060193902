"""`--shrink`: which values of a recipe become small, and which stay."""

import json

import pytest

from prism_cli.errors import RecipeError
from prism_cli.model_configs import model_config, shipped_configs
from prism_cli.recipes.identity import to_dict
from prism_cli.recipes.load import load_recipe, load_step
from prism_cli.recipes.sources import shipped
from prism_cli.runs.references import newest_finished
from prism_cli.stages.shrink import scaled_down, scaled_down_pipeline, vocabulary

LARGE = "Qwen/Qwen3-VL-8B-Instruct"


@pytest.mark.parametrize("size", ["4b", "8b"])
@pytest.mark.parametrize("stage", ["sft", "warmup", "align", "rl", "collect"])
def test_rows_teacher_and_discriminator_need_no_download(stage, size):
    recipe = scaled_down(stage, load_recipe(stage, f"qwen3_vl_{size}")).recipe
    assert recipe.data.type == "world"
    assert getattr(getattr(recipe, "teacher", None), "type", "embedded") == "embedded"
    if stage in ("warmup", "align"):
        assert recipe.discriminator.base.startswith("runs/scaled_down_models/Qwen3-VL-2B")
        assert recipe.discriminator.warmup.data is None
    assert recipe.output == f"runs/{stage}-scaled-down"


def test_what_the_recipe_decides_stays():
    written = ["lora={rank: 4}", "kl=0.1", "advantage.malformed=apart", "discriminator.readout=mean", "seed=7"]
    before = load_recipe("align", "qwen3_vl_4b", [*written, "optimizer.learning_rate=3e-6"])
    after = scaled_down("align", before).recipe
    kept = ("lora", "kl", "advantage", "optimizer", "seed", "clip", "dual_clip", "temperature")
    assert {key: getattr(after, key) for key in kept} == {key: getattr(before, key) for key in kept}
    keys = ("type", "experts", "top_k", "readout", "noise", "learning_rate", "micro_batch")
    assert all(getattr(after.discriminator, key) == getattr(before.discriminator, key) for key in keys)


@pytest.mark.parametrize(("name", "algorithm"), [("rl", "grpo"), ("rl_dapo", "dapo"), ("rl_gspo", "gspo")])
def test_the_algorithm_stays_and_its_rollouts_divide(name, algorithm):
    recipe = scaled_down("rl", load_recipe("rl", f"qwen3_vl_4b/{name}")).recipe
    assert recipe.algorithm.type == algorithm
    assert (recipe.max_steps, recipe.prompts_per_step, recipe.rollouts) == (2, 2, 4)
    # Two rollouts of a prompt in a pass, so that prefix packing is exercised.
    assert recipe.micro_batch == 2


def test_a_mixture_keeps_its_sources_and_their_shares():
    counted = "data={type: mixture, sources: {a: {path: a.jsonl, count: 500}, b: {path: b.jsonl, count: 3}}}"
    sources = scaled_down("rl", load_recipe("rl", "qwen3_vl_4b", [counted])).recipe.data.sources
    assert {name: (one.type, one.count, one.weight, one.seed) for name, one in sources.items()} == {
        "a": ("world", 32, None, 0),
        "b": ("world", 3, None, 1),
    }


def test_a_teacher_that_reads_captions_is_replaced_by_an_oracle_that_does():
    small = scaled_down("align", load_recipe("align", "qwen3_vl_4b", ["teacher.modality=text"])).recipe
    assert (small.teacher.type, small.teacher.modality) == ("embedded", "text")


def test_what_would_be_asked_or_fetched_is_left_out_and_that_is_said(tmp_path):
    config = {"model_type": "qwen3_vl", "text_config": {"hidden_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    overrides = [f"runs=[{tmp_path}]", "benchmarks={}", "llm_judge={endpoint: http://b}"]
    small = scaled_down("eval", load_recipe("eval", "qwen3_vl_4b", overrides))
    assert (small.recipe.benchmarks, small.recipe.llm_judge, small.recipe.data.split) == (None, None, "test")
    assert small.changes[0].endswith("without benchmarks, llm_judge")


def test_updates_of_a_batch_fit_into_two_steps():
    several = ["trainer.num_iterations=4", "trainer.top_p=0.9"]
    recipe = scaled_down("rl", load_recipe("rl", "qwen3_vl_4b", several)).recipe
    assert (recipe.max_steps, recipe.trainer) == (2, {"num_iterations": 2, "top_p": 0.9})


def test_the_tiny_model_stays_as_it_is():
    recipe = load_recipe("sft", "tiny")
    assert scaled_down("sft", recipe).recipe.model == recipe.model


def test_smaller_values_stay():
    recipe = scaled_down("rl", load_recipe("rl", "qwen3_vl_4b", ["rollouts=2", "max_response_tokens=16"])).recipe
    assert (recipe.rollouts, recipe.max_response_tokens) == (2, 16)


def test_processes_are_dropped_and_that_is_said():
    small = scaled_down("sft", load_recipe("sft", "qwen3_vl_8b"))
    assert small.recipe.launch.world_size == 1
    assert small.changes[0].endswith("one process in place of 8 with ZeRO-3")
    assert "max_steps all → 2" in small.changes[0]


def test_transformers_generates_and_that_is_said():
    small = scaled_down("rl", load_recipe("rl", "qwen3_vl_4b"))
    assert small.recipe.generation.type == "transformers"
    assert small.changes[0].endswith("transformers in place of vLLM")


def test_later_steps_of_a_pipeline_start_from_earlier_ones():
    path = shipped()["qwen3_vl_8b/1gpu/pipeline"]
    small = scaled_down_pipeline(load_recipe("run", path), path.parent)
    first, *later = small.recipe.steps
    assert first.set["model"]["path"].startswith("runs/scaled_down_models/Qwen3-VL-8B")
    assert not any("model" in step.set or "from" in step.set for step in later)
    assert len(small.changes) == len(small.recipe.steps)
    assert load_step(later[0], path.parent).lora.rank == 64
    assert small.recipe.output == "runs/qwen3_vl_8b_1gpu-scaled-down"


def test_a_model_without_a_config_here_is_refused():
    with pytest.raises(RecipeError, match=r"--shrink needs the config.json of Some/Model"):
        scaled_down("sft", load_recipe("sft", None, ["model.path=Some/Model"]))


def test_a_large_run_is_not_evaluated(tmp_path):
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model/config.json").write_text(json.dumps(model_config(LARGE)))
    finished = {"stage": "sft", "id": "sft", "name": "sft", "status": "finished", "recipe": {}, "finished": "now"}
    (tmp_path / "run/run.json").write_text(json.dumps(finished))
    with pytest.raises(RecipeError, match="has a large one"):
        scaled_down("eval", load_recipe("eval", "qwen3_vl_4b", [f"runs=[{tmp_path}/run]"]))


def test_a_scaled_down_run_is_never_the_newest(tmp_path):
    for name in ("sft-scaled-down", "sft"):
        (tmp_path / name).mkdir()
        manifest = {"stage": "sft", "status": "finished", "recipe": {}, "finished": f"{len(name)}"}
        (tmp_path / name / "run.json").write_text(json.dumps(manifest))
    assert newest_finished("sft", tmp_path) == tmp_path / "sft"


@pytest.mark.parametrize("name", shipped_configs())
def test_a_scaled_down_model_has_the_shapes_of_the_large_one(name):
    from prism_cli.tiny_models.scaled_down import scaled_down_config
    from prism_cli.tiny_models.tiny import tiny_processor

    large = model_config(name)
    small = scaled_down_config(large, tiny_processor(vocabulary(), 64 * 64, patch=16))
    text, wide = small.text_config, large["text_config"]
    assert small.tie_word_embeddings == large["tie_word_embeddings"]
    assert text.hidden_size * 32 == wide["hidden_size"]
    groups = wide["num_attention_heads"] // wide["num_key_value_heads"]
    assert text.num_attention_heads // text.num_key_value_heads == groups
    assert len(small.vision_config.deepstack_visual_indexes) == len(large["vision_config"]["deepstack_visual_indexes"])
    assert text.num_hidden_layers >= 2
    assert sum(text.rope_parameters["mrope_section"]) == text.head_dim // 2
    assert small.vision_config.patch_size == large["vision_config"]["patch_size"]


def test_a_config_in_the_words_of_the_hub_is_understood():
    from prism_cli.tiny_models.scaled_down import scaled_down_config
    from prism_cli.tiny_models.tiny import tiny_processor

    large = model_config(LARGE)
    rope = large["text_config"].pop("rope_parameters")
    large["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    small = scaled_down_config(large, tiny_processor(vocabulary(), 64 * 64, patch=16)).text_config.rope_parameters
    assert (small["rope_theta"], sum(small["mrope_section"])) == (5000000, 16)


def test_the_same_command_gives_the_same_recipe():
    once, again = (scaled_down("align", load_recipe("align", "qwen3_vl_4b")) for _ in range(2))
    assert to_dict(once.recipe) == to_dict(again.recipe)
    assert [model.folder for model in once.models] == [model.folder for model in again.models]
