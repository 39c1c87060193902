"""The tiny stages with vLLM by the real command line, one process for all: its imports are paid once."""

import json
import os

import pytest

from prism_cli import processes

VLLM = ["generation.type=vllm"]
STEP = ["prompts_per_step=4", "rollouts=4", "micro_batch=16", "checkpoint.every=5", "eval_data=null", "data.size=64"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def prism(workplace):
    """In this process and not by CliRunner: vLLM wants a stdout that is a file."""
    from prism_cli.cli.app import app

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        assert not ended.value.code, arguments

    return run


@pytest.fixture(scope="module")
def sft(prism, workplace):
    """A policy that knows the form, hardly more."""
    short = ["max_steps=80", "checkpoint.every=80", "eval_data=null", "checkpoint.evaluate_every=null"]
    prism("sft", "tiny", *short)
    return workplace / "runs/sft"


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_ten_align_steps_and_the_pairs_before_them(prism, sft, workplace):
    warmup = "discriminator.warmup={pairs: 32, held_out: 8, batch_size: 8, learning_rate: 1e-3}"
    prism("align", "tiny", "--from", sft, "max_steps=10", *STEP, *VLLM, warmup)
    assert len((workplace / "runs/align/warmup/samples.jsonl").read_text().splitlines()) == 40
    lines = metrics(workplace / "runs/align")
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 10
    assert all(line["sampling/sampling_logp_difference/mean"] < 1e-3 for line in steps)
    assert (workplace / "runs/align/showcase.jsonl").exists()
    assert not processes.launched(), "TRL says that a launcher started this process"


def test_ten_rl_steps_with_an_end_between_are_the_ten_steps(prism, sft, workplace):
    rl = ["rl", "tiny", "--from", sft, *STEP, *VLLM, "checkpoint.evaluate_every=null"]
    prism(*rl, "max_steps=5", "optimizer.schedule=constant", "--output", "runs/cut")
    prism(*rl, "max_steps=10", "optimizer.schedule=constant", "--output", "runs/cut")
    prism(*rl, "max_steps=10", "optimizer.schedule=constant", "--output", "runs/whole")
    cut, whole = ([line for line in metrics(workplace / f"runs/{name}") if "loss" in line] for name in ("cut", "whole"))
    assert [line["step"] for line in cut] == list(range(1, 11))
    for name in ("loss", "reward", "completions/mean_length", "sampling/sampling_logp_difference/mean"):
        assert [line[name] for line in cut] == pytest.approx([line[name] for line in whole], abs=1e-6), name
    assert max(line["sampling/sampling_logp_difference/mean"] for line in cut) < 1e-3


def test_adapters_are_in_vllms_weights_those_of_the_eyes_too(prism, sft, workplace):
    adapters = ["lora.rank=4", "lora.vision=true", "optimizer.learning_rate=1e-2", "checkpoint.evaluate_every=null"]
    prism("rl", "tiny", "--from", sft, "max_steps=3", *STEP, *VLLM, *adapters, "--output", "runs/lora")
    steps = [line for line in metrics(workplace / "runs/lora") if "loss" in line]
    assert all(line["grad_norm"] for line in steps), "the adapters must move"
    assert max(line["sampling/sampling_logp_difference/mean"] for line in steps) < 1e-3


def test_greedy_answers_of_an_evaluation_are_those_of_transformers(prism, sft, workplace):
    few = ["data.size=16", "samples=1", "teacher=null"]
    prism("eval", sft, "tiny", *few, *VLLM, "--output", "runs/by_vllm")
    prism("eval", sft, "tiny", *few, "generation.type=transformers", "--output", "runs/by_transformers")
    answers = [
        [json.loads(line) for line in (workplace / f"runs/{name}/samples-sft.jsonl").read_text().splitlines()]
        for name in ("by_vllm", "by_transformers")
    ]
    texts = [[line["greedy"]["text"] for line in lines] for lines in answers]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1, "pictures must matter"
    sampled = [[line["samples"][0]["text"] for line in lines] for lines in answers]
    assert sampled[0] != sampled[1], "each backend has random numbers of its own"
