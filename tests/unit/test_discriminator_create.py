"""A discriminator's folder made from a dense one on disk, and discriminators that others released."""

import copy
import gc
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_policy

from prism_cli.assembly.discriminator import check_discriminator, discriminator_settings, samples_pairs
from prism_cli.assembly.response import grammar_of
from prism_cli.discriminator import create as creating
from prism_cli.discriminator.build import open_discriminator
from prism_cli.discriminator.create import SAME, NewDiscriminator, create, distance, upcycled_distance
from prism_cli.discriminator.inputs import PromptInputs
from prism_cli.discriminator.model import Discriminator
from prism_cli.discriminator.saved import saved_discriminator
from prism_cli.discriminator.settings import Upcycling
from prism_cli.discriminator.upcycle import upcycle
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.models import Policy
from prism_cli.recipes.sections import ResponseSection
from prism_cli.recipes.stages import AlignRecipe
from prism_cli.stages import discriminator_create as stage
from prism_cli.tiny_models.tiny import tiny_model

SETTINGS = {
    "kind": "moe",
    "parts": ["perception", "reasoning"],
    "readout": "last",
    "dropout": 0.1,
    "readout_id": 60,
}
RULE = Upcycling(experts=3, noise_scale="relative", noise=0.1, seed=5)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense model's folder in several shards."""
    folder = tmp_path_factory.mktemp("dense")
    model, processor = tiny_policy()
    copy.deepcopy(model).save_pretrained(folder, max_shard_size="100KB")
    processor.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    return folder


def made(dense, output, **options):
    create(dense, output, NewDiscriminator("the tiny one", RULE, SETTINGS), **options)
    return output


def creation(dense, output, **options):
    usual = {"experts": 4, "top_k": 2, "noise": 0.01, "noise_scale": "absolute", "seed": 0}
    return stage.Creation(str(dense), output, Upcycling(**usual | options), "last", 0.1, head_std=0.02, check=True)


@pytest.mark.parametrize("shard_bytes", [64_000, 1 << 30])
def test_what_is_written_is_what_upcycling_in_memory_gives(dense, shard_bytes, tmp_path):
    folder = made(dense, tmp_path / "discriminator", shard_bytes=shard_bytes)
    files = len(list(folder.glob("model*.safetensors")))
    assert files > 6 if shard_bytes == 64_000 else files == 1
    opened = Discriminator.from_pretrained(folder)
    expected = upcycle(tiny_policy()[0], RULE).state_dict()
    found = opened.body.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert opened.parts == ("perception", "reasoning")
    assert opened.body.config.text_config.num_experts == 3
    assert 0 < float(opened.head.weight.detach().std()) < 0.03


def test_a_body_alone_in_one_file_is_read_too(tmp_path):
    body = copy.deepcopy(tiny_policy()[0].model)
    body.save_pretrained(tmp_path / "dense")
    opened = Discriminator.from_pretrained(made(tmp_path / "dense", tmp_path / "discriminator"))
    expected = upcycle(body, RULE).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in opened.body.state_dict().items())


def test_half_precision_stays_half(tmp_path):
    half = copy.deepcopy(tiny_policy()[0]).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "dense")
    opened = Discriminator.from_pretrained(made(tmp_path / "dense", tmp_path / "discriminator"))
    assert {weight.dtype for weight in opened.parameters()} == {torch.bfloat16}
    expected = upcycle(half, RULE).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in opened.body.state_dict().items())


def alive() -> int:
    """Bytes of all tensors made since."""
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor}
    return sum(storages.values())


def test_memory_holds_one_shard_and_the_next_weight(tmp_path):
    gc.freeze()  # what there is already need not be looked through at each weight
    deep = tiny_model(tiny_policy()[1], hidden=64, layers=8, vision_hidden=32)
    deep.save_pretrained(tmp_path / "dense", max_shard_size="100KB")
    del deep
    before, most, shard = alive(), 0, 100_000

    def watch(done):
        nonlocal most
        most = max(most, alive() - before)

    folder = made(tmp_path / "dense", tmp_path / "discriminator", shard_bytes=shard, on_progress=watch)
    weights = [w for path in folder.glob("model*.safetensors") for w in load_file(path).values()]
    largest, whole = max(w.nbytes for w in weights), sum(w.nbytes for w in weights)
    assert whole > 5 * (shard + largest), "else this shows nothing"
    assert shard / 2 < most <= shard + largest


def test_a_missing_weight_is_named_and_no_folder_is_left(dense, tmp_path):
    broken = tmp_path / "dense"
    broken.mkdir()
    for path in dense.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    index = json.loads((broken / creating.INDEX).read_text())
    del index["weight_map"]["model.language_model.layers.1.mlp.up_proj.weight"]
    (broken / creating.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        made(broken, tmp_path / "discriminator")
    assert not (tmp_path / "discriminator").exists()


def test_the_command_compares_hidden_states_and_says_where_the_discriminator_is(dense, tmp_path, capsys):
    stage.create(creation(dense, tmp_path / "discriminator"))
    said = capsys.readouterr().out
    silent, noisy = (
        float(number) for number in (said.split("at most: ")[1].split()[0], said.split(", ")[-1].split()[0])
    )
    assert silent < SAME < noisy
    assert f"discriminator.path={tmp_path / 'discriminator'}" in said
    assert not saved_discriminator(tmp_path / "discriminator").warm
    assert json.loads((tmp_path / "discriminator/created.json").read_text())["from"] == str(dense)


def test_the_comparison_sees_a_body_that_is_another(dense):
    model, processor = tiny_policy()
    inputs = stage._probe(processor)
    assert upcycled_distance(model.model, RULE, inputs) < 1e-6
    other = copy.deepcopy(model.model)
    with torch.no_grad():
        other.language_model.layers[0].mlp.up_proj.weight.mul_(1.1)
    assert distance(upcycle(model, Upcycling(noise=0.0)), other, inputs) > SAME


def test_a_dry_run_tells_the_size_and_writes_nothing(dense, tmp_path):
    plan = dict(stage.check(creation(dense, tmp_path / "discriminator", experts=8)))
    assert "8 experts a layer, 2 a token" in plan["makes"]
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_upcycled_is_refused(dense, tmp_path):
    for family in ("qwen2_5_vl", "qwen3_vl_moe"):
        (tmp_path / family).mkdir()
        (tmp_path / family / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(RecipeError, match=f"is a {family} model") as caught:
            stage.check(creation(tmp_path / family, tmp_path / "discriminator"))
        assert "dense Qwen3-VL" in caught.value.hint
    with pytest.raises(RecipeError, match="can't visit 3"):
        stage.check(creation(dense, tmp_path / "discriminator", experts=2, top_k=3))
    with pytest.raises(RecipeError, match="no run, no folder"):
        stage.check(creation("nobody/nothing", tmp_path / "discriminator"))
    with pytest.raises(CheckpointError, match="is there already"):
        stage.check(creation(dense, dense))


# Released discriminators ----------------------------------------------------------------------------------------------


def aligned(**section):
    return AlignRecipe.model_validate({"discriminator": section})


@pytest.fixture
def released(dense, tmp_path):
    """A discriminator as its authors released it: head among the weights, experts transposed; and the same as ours."""
    ours = Discriminator.from_pretrained(made(dense, tmp_path / "ours"))
    folder = tmp_path / "released"
    ours.body.save_pretrained(folder)
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        weights[f"model.{name}"] = weight.transpose(1, 2).contiguous() if ".experts." in name else weight
    weights["v_head.1.weight"] = ours.head.weight.detach().clone()
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, ours


def test_a_released_discriminator_scores_as_it_did(released):
    folder, ours = released
    opened = Discriminator.from_pretrained(folder, SETTINGS)
    state = ours.state_dict()
    assert [name for name, weight in opened.state_dict().items() if not torch.equal(weight, state[name])] == []
    question = PromptInputs([5, 6, 7])
    with torch.no_grad():
        scores = [float(one(one.inputs([question], [(0, [8, 9])]))) for one in (opened, ours)]
    assert scores[0] == scores[1] != 0


def test_a_released_discriminator_needs_a_recipe_that_says_how_it_is_read(released):
    with pytest.raises(CheckpointError, match="does not say how its discriminator is read") as caught:
        Discriminator.from_pretrained(released[0])
    assert "discriminator.path" in caught.value.hint


def test_a_recipe_names_a_released_discriminator_by_its_kind(released):
    folder = str(released[0])
    assert "released" in check_discriminator(aligned(path=folder, readout="mean"))
    with pytest.raises(RecipeError, match="has type 'moe', the recipe 'dense'"):
        check_discriminator(aligned(type="dense", path=folder))


def test_a_recipe_says_how_a_released_discriminator_is_read_and_a_stranger_to_the_policys_tokens_is_refused(released):
    folder, ours = released
    policy = Policy(*tiny_policy(), grammar_of(ResponseSection()), None)
    start = discriminator_settings(aligned(readout="mean", dropout=0.3)).start
    opened = open_discriminator(str(folder), start, policy, ("reasoning",))
    assert (opened.kind, opened.readout, opened.dropout, opened.parts) == ("moe", "mean", 0.3, ("reasoning",))
    assert opened.readout_id == policy.processor.tokenizer.eos_token_id != ours.readout_id
    cold = folder.parent / "ours"
    with pytest.raises(RecipeError, match="reads other tokens than the policy"):
        open_discriminator(str(cold), start, policy, ("reasoning",))


def test_a_released_discriminator_without_some_expert_is_refused(released):
    folder, _ = released
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.0.mlp.experts.down_proj"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts\.down_proj"):
        Discriminator.from_pretrained(folder, SETTINGS)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def test_a_head_that_is_only_pickled_is_refused_unopened(released):
    folder, _ = released
    weights = load_file(folder / "model.safetensors")
    del weights["v_head.1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "v_head.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"only pickles are here \(v_head.bin\)") as caught:
        Discriminator.from_pretrained(folder, SETTINGS)
    assert "safetensors" in caught.value.hint


def test_a_cold_discriminator_is_warmed_up_and_a_recipe_that_reads_it_otherwise_refused(dense, tmp_path):
    folder = str(made(dense, tmp_path / "discriminator"))
    assert check_discriminator(aligned(path=folder)).startswith("moe, warmed up on 120000 pairs, from ")
    assert samples_pairs(aligned(path=folder))
    with pytest.raises(RecipeError, match="has readout 'last', the recipe 'mean'"):
        check_discriminator(aligned(path=folder, readout="mean"))
