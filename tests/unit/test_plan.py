"""Memory and time of a stage, planned: the formulae against torch's own count, and numbers a person can check."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from prism_cli import phases
from prism_cli.assembly.out_of_memory import fitting
from prism_cli.assembly.planned_job import job_ahead, sft_job, start_of
from prism_cli.assembly.policy import LANGUAGE_LAYERS
from prism_cli.cli.app import app
from prism_cli.discriminator.settings import Upcycling
from prism_cli.discriminator.upcycle import mixture_config
from prism_cli.errors import PrismError
from prism_cli.launching.command import Launch
from prism_cli.model_configs import config_folder
from prism_cli.planning.activations import Arithmetic, text_layer, vision_layer
from prism_cli.planning.effort import effort
from prism_cli.planning.job import GB, Adapters, Device, Discriminator, Generation, Job
from prism_cli.planning.memory import host_bytes, moments, peak, peaks
from prism_cli.planning.savings import best_savings
from prism_cli.planning.shapes import shape_of
from prism_cli.planning.start import Start
from prism_cli.recipes.load import load_recipe
from prism_cli.trainers.callbacks import StepStart
from prism_cli.trainers.memory import MemoryWatch

FLOAT32 = Arithmetic(4, autocast=False, checkpointing=False)
MIXED = Arithmetic(4, autocast=True, checkpointing=False)
BFLOAT16 = Arithmetic(2, autocast=False, checkpointing=False)


@pytest.fixture(scope="module")
def configs():
    from transformers import AutoConfig

    return {size: AutoConfig.from_pretrained(config_folder(f"Qwen/Qwen3-VL-{size}-Instruct")) for size in ("2B", "4B")}


@pytest.fixture(scope="module")
def policy(configs):
    return shape_of(configs["4B"], LANGUAGE_LAYERS)


@pytest.fixture(scope="module")
def body(configs):
    return shape_of(mixture_config(configs["2B"], Upcycling()), LANGUAGE_LAYERS, body=True)


@pytest.fixture
def sft(policy):
    return Job(
        stage="sft", device=Device(True, 80 * GB, 989.0), policy=policy, weight_bytes=4, checkpointing=True,
        autocast=True, launch=Launch(), adapters=None, micro_batch=2, passes=1, prompt=8192, response=0, pixels=2**20,
        group=1, reference=False, generation=None, discriminator=None, steps=100, packed=False,
    )  # fmt: skip


@pytest.fixture
def align(sft, body):
    return dataclasses.replace(
        sft, stage="align", launch=Launch(8, 1, 3), micro_batch=1, passes=8, prompt=2048, response=6144, group=16,
        packed=True, generation=Generation(8, 2048, 6144, vllm=0.3),
        discriminator=Discriminator(body, 1, 2, True, True),
    )  # fmt: skip


def test_a_models_sizes_are_read_off_its_class_without_weights(policy, body):
    assert policy.weights == pytest.approx(4.44e9, rel=0.01)
    assert policy.vision.weights == pytest.approx(0.415e9, rel=0.01)
    assert policy.embedding == 151_936 * 2560  # tied: once
    # Four copies of 28 layers' MLPs (3 · 2048 · 6144) in place of one.
    assert body.experts == 4 * 28 * 3 * 2048 * 6144
    assert body.embedding == 151_936 * 2048
    assert not body.head
    # q, o (2560 ↔ 4096), k, v (→ 1024), three of the MLP (2560 ↔ 9728), a rank.
    assert policy.adapters[0] == 36 * (2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728))


@pytest.mark.parametrize("how", [FLOAT32, MIXED, BFLOAT16], ids=["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("experts", [0, 2])
def test_what_a_text_layer_keeps_is_what_torch_saves(how, experts):
    from tests.tiny import tiny_policy

    config = tiny_policy()[0].config
    model = _text(config, experts).to(torch.float32 if how.weight_bytes == 4 else torch.bfloat16)
    layer, count = model.layers[0], 509
    tower = shape_of(
        mixture_config(config, Upcycling(top_k=2)) if experts else config, LANGUAGE_LAYERS, bool(experts)
    ).text
    states = torch.randn(1, count, tower.hidden, dtype=layer.input_layernorm.weight.dtype)
    turns = model.rotary_emb(states, torch.arange(count)[None, None].expand(3, 1, -1))
    kept = _saved(layer, states, how.autocast, position_embeddings=turns, attention_mask=None)
    assert text_layer(tower, how) == pytest.approx(kept / count, rel=0.05)


@pytest.mark.parametrize("how", [FLOAT32, MIXED, BFLOAT16], ids=["float32", "autocast", "bfloat16"])
def test_what_a_layer_of_the_eyes_keeps_is_what_torch_saves(how):
    from tests.tiny import tiny_policy

    model, count = tiny_policy()[0], 509
    eyes = _eyes(model.config).to(torch.float32 if how.weight_bytes == 4 else torch.bfloat16)
    states = torch.randn(count, 32, dtype=eyes.patch_embed.proj.weight.dtype)
    place = torch.arange(count)
    turns = eyes.rotary_pos_emb(states, torch.stack([place, place], 1))
    ends = torch.tensor([0, count])
    kept = _saved(eyes.blocks[0], states, how.autocast, cu_seqlens=ends, position_embeddings=turns)
    assert vision_layer(shape_of(model.config, LANGUAGE_LAYERS).vision, how) == pytest.approx(kept / count, rel=0.05)


def _text(config, experts):
    from transformers import Qwen3VLModel, Qwen3VLMoeModel

    if experts:
        return Qwen3VLMoeModel._from_config(mixture_config(config, Upcycling(top_k=experts))).language_model
    return Qwen3VLModel._from_config(config).language_model


def _eyes(config):
    from transformers import Qwen3VLModel

    return Qwen3VLModel._from_config(config).visual


def _saved(layer, states, autocast, **inputs):
    """Bytes torch keeps for the backward pass, the layer's own weights, their copies and its inputs left out."""
    given = [
        *layer.parameters(),
        *(t for value in inputs.values() for t in (value if isinstance(value, tuple) else [value])),
    ]
    own = {t.untyped_storage().data_ptr() for t in given if isinstance(t, torch.Tensor)}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        layer(states.requires_grad_(), **inputs)
    sizes = {weight.numel() for weight in layer.parameters() if weight.ndim > 1}
    copies = sum(n for n, tensor in kept.values() if autocast and tensor.dtype == torch.bfloat16 and tensor.ndim == 2
                 and tensor.numel() in sizes)  # fmt: skip
    return sum(n for n, _ in kept.values()) - copies


def test_adamw_in_mixed_precision_takes_sixteen_bytes_a_weight(sft, policy):
    step = next(moment for moment in moments(sft) if moment.name == "optimizer step")
    states = step.total - step.parts["CUDA and holes"]
    assert states == 16 * policy.weights


def test_zero_shards_all_eighteen_bytes_at_stage_3_and_all_but_the_weights_at_stage_2(sft, policy):
    def states(zero):
        job = dataclasses.replace(sft, launch=Launch(8, 1, zero))
        step = next(moment for moment in moments(job) if moment.name == "optimizer step")
        return sum(step.parts[f"policy {name}"] for name in ("weights", "gradients", "optimizer"))

    # bfloat16 weights, their gradients summed in float32, and AdamW's three numbers.
    assert states(3) == 18 * policy.weights / 8
    assert states(2) == (2 + 16 / 8) * policy.weights


def test_offloaded_states_lie_in_main_memory(sft, policy):
    job = dataclasses.replace(sft, launch=Launch(1, 1, 2, offload=True))
    assert peaks(job)["update"].parts.get("policy optimizer") is None
    assert host_bytes(job) == 16 * policy.weights  # moments, float32 weights, and float32 gradients for a step


def test_logits_are_counted_in_tiles_and_not_as_a_whole(sft):
    # All logits of 16,384 tokens would be 10 GB in float32; TRL never holds them.
    forward = next(moment for moment in moments(sft) if moment.name == "forward")
    assert forward.parts["logits"] == 4096 * 32768 * 2


def test_without_checkpointing_every_layer_keeps_what_it_needs(sft):
    whole = dataclasses.replace(sft, checkpointing=False)
    ratio = peaks(whole)["update"].parts["activations"] / peaks(sft)["update"].parts["activations"]
    assert ratio > 10


def test_transformers_keeps_a_cache_of_all_rollouts_and_vllm_its_share(align):
    plain = dataclasses.replace(align, generation=Generation(8, 2048, 6144))
    cache = peaks(plain)["generation"].parts["KV cache"]
    # 8 rollouts · 8,192 tokens · 36 layers · 1,024 keys and values in bfloat16, and one layer once more.
    assert cache == pytest.approx(8 * 8192 * 36 * 1024 * (2 + 2) * (1 + 1 / 36))
    assert peaks(align)["generation"].parts["vLLM"] == 0.3 * 80 * GB
    assert "vLLM" not in peaks(align)["update"].parts
    awake = dataclasses.replace(align, generation=dataclasses.replace(align.generation, sleeps=False))
    assert peaks(awake)["update"].parts["vLLM"] == 0.3 * 80 * GB


def test_vllm_is_not_planned_to_fit_into_less_than_its_weights_and_one_rollout(align, policy):
    scant = dataclasses.replace(align, generation=Generation(8, 2048, 6144, vllm=0.05))
    one_rollout = 8192 * 36 * 1024 * (2 + 2)
    assert peaks(scant)["generation"].parts["vLLM"] == 2 * policy.weights + one_rollout


def test_a_judges_gradients_are_gone_while_rollouts_are_made(align):
    whole = peaks(dataclasses.replace(align, launch=Launch()))
    assert "discriminator gradients" in whole["discriminator"].parts
    assert not any("discriminator gradients" in whole[phase].parts for phase in ("generation", "update"))


def test_every_phase_of_align_is_planned_and_the_warm_up_has_no_policy_optimizer(align):
    found = peaks(align)
    assert list(found) == ["warm-up", "generation", "discriminator", "update"]
    assert "policy optimizer" not in found["warm-up"].parts
    assert "discriminator optimizer" in found["update"].parts


def test_the_settings_that_save_most_come_first_and_there_are_three(align):
    job = dataclasses.replace(align, launch=Launch(), generation=Generation(8, 2048, 6144))
    savings = best_savings(job)
    sizes = [peak(saving.job) for saving in savings]
    assert len(savings) == 3
    assert sizes == sorted(sizes)
    assert sizes[-1] <= 0.9 * peak(job), "each is worth naming"
    assert [saving.overrides for saving in savings] == [
        ("launch.zero=2", "launch.offload=true"),
        ("launch.processes=4", "launch.zero=2"),
        ("lora={}",),
    ]


def test_of_a_settings_values_the_first_that_fits_is_taken_else_the_one_that_saves_most(sft):
    def overrides(gigabytes, name, **changes):
        job = dataclasses.replace(sft, device=Device(True, gigabytes * GB), **changes)
        return next(saving.overrides for saving in best_savings(job) if saving.overrides[0].startswith(name))

    assert overrides(120, "batch_size", micro_batch=16) == ("batch_size=4", "gradient_accumulation=4")
    assert overrides(110, "batch_size", micro_batch=16) == ("batch_size=2", "gradient_accumulation=8")
    assert overrides(20, "batch_size", micro_batch=16) == ("batch_size=1", "gradient_accumulation=16")
    assert overrides(40, "launch", launch=Launch(8)) == ("launch.zero=2",)
    assert overrides(22, "launch", launch=Launch(8)) == ("launch.zero=3", "launch.offload=true")


def test_fewer_rows_and_more_processes_keep_the_step(sft, align):
    def rows(job):
        return job.micro_batch * job.passes * job.launch.world_size

    for job, start in (
        (dataclasses.replace(sft, micro_batch=16), "batch_size"),
        (dataclasses.replace(align, launch=Launch()), "launch.processes"),
    ):
        (saving,) = (one for one in best_savings(job) if one.overrides[0].startswith(start))
        assert rows(saving.job) == rows(job)


def test_a_phase_alone_is_made_smaller_by_what_concerns_it(align):
    job = dataclasses.replace(align, generation=Generation(64, 2048, 6144))
    (first, *_) = best_savings(job, lambda one: peaks(one)["generation"].total)
    assert first.overrides == ("generation.type=vllm",)


def test_adapters_leave_out_what_is_frozen(sft, policy):
    job = dataclasses.replace(sft, adapters=Adapters(16))
    step = next(moment for moment in moments(job) if moment.name == "optimizer step").parts
    assert step["policy optimizer"] == 8 * 16 * policy.adapters[0]
    quarter = dataclasses.replace(job, adapters=Adapters(16, four_bits=True))
    whole, rounded = (peaks(one)["update"].parts["policy weights"] for one in (job, quarter))
    assert whole - rounded == pytest.approx((4 - 0.52) * policy.linear)


def test_time_follows_from_the_arithmetic(sft, policy):
    # 8 · N · tokens (forward, backward, forward again), at 35 % of 989 · 10¹²; attention and pictures add some.
    language = policy.text.weights + policy.embedding
    least = 8 * language * 2 * 8192 / (0.35 * 989e12)
    assert least < effort(sft).step["update"] < 1.5 * least


def run_out(inner=None):
    """Runs out of memory in the seventh step, for real, in a phase of it or after one."""
    StepStart().on_step_begin(None, SimpleNamespace(global_step=6), None)
    with phases.within(inner or phases.GENERATION):
        if inner:
            torch.empty(10**15)
    torch.empty(10**15)


def test_running_out_of_memory_says_where_how_much_and_what_to_change():
    recipe = load_recipe("sft", "tiny/sft", ["batch_size=8"])
    with pytest.raises(PrismError) as caught, fitting(lambda: job_ahead(recipe, partial(sft_job, recipe))):
        run_out()
    assert str(caught.value).startswith("out of memory in the update of step 7: 4,000,000.0 GB more asked for, ")
    assert str(caught.value).endswith(" free")
    assert caught.value.hint.startswith("batch_size=4 gradient_accumulation=2 (")


@pytest.mark.parametrize("phase", ["generation", "discriminator"])
def test_the_phase_within_the_step_is_named(phase):
    with pytest.raises(PrismError, match=f"out of memory in the {phase} of step 7"), fitting(lambda: None):
        run_out(phase)


def test_before_training_memory_runs_out_while_loading():
    phases.enter(phases.UPDATE, 7)  # of an earlier stage in this process
    with pytest.raises(PrismError, match="out of memory while loading"), fitting(lambda: None):
        raise MemoryError


def test_the_measured_peak_is_printed_beside_the_plan_after_the_second_step(capsys):
    kept, state = {}, SimpleNamespace(global_step=0, is_world_process_zero=True)
    watch = MemoryWatch(0.5 * GB, 0.0, lambda **values: kept.update(values))
    watch.on_train_begin(None, state, None)
    for state.global_step in (1, 2):
        torch.ones(100_000_000)  # 0.4 GB, gone at once
        watch.on_step_end(None, state, None)
        assert bool(kept) == (state.global_step == 2)
    assert 0.4 <= kept["memory"]["peak_gb"] < 0.5
    assert kept["memory"]["planned_gb"] == 0.5
    assert capsys.readouterr().out.startswith("memory: 0.4 GB measured over the first 2 steps, 0.5 planned")
    watch.on_log(None, state, None, logs := {})
    assert logs["memory/peak_gb"] == kept["memory"]["peak_gb"]


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes differ"), fitting(lambda: None):
        raise RuntimeError("shapes differ")


def test_a_pipeline_is_planned_step_by_step_from_config_files():
    done = CliRunner().invoke(app, ["plan", "tiny", "--gpu-memory", "80", "--json"])
    assert done.exit_code == 0, done.output
    steps = json.loads(done.stdout)
    assert [step["step"] for step in steps] == ["sft", "align", "rl"]
    assert all(step["fits"] for step in steps)
    assert set(steps[1]["phases"]) >= {"generation", "discriminator", "update"}


def test_what_does_not_fit_is_said_with_the_settings_that_save_most():
    words = ["plan", "tiny/sft", "--gpu-memory", "1.04", "batch_size=512"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, done.output
    assert "does not fit" in done.output
    assert "with batch_size=16 gradient_accumulation=32: 1.0 GB, fits" in done.output
    (step,) = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert step["savings"][0] == {
        "overrides": ["batch_size=16", "gradient_accumulation=32"],
        "peak_gb": pytest.approx(1.036),
    }
    assert len(step["savings"]) == 3


def test_a_step_after_a_tiny_one_is_planned_as_starting_from_a_saved_folder():
    tiny = Start(config=None, pixels=4096, weight_bytes=4, parts=2, saved=False, attention="eager")
    start = start_of(load_recipe("rl", "tiny", options={"from": "runs/not_there_yet"}), tiny)
    assert (start.saved, start.attention, start.pixels) == (True, "sdpa", 4096)
