"""What a GPU does to this code, in nine minutes: kernels, patches, attention, a 4B policy, its discriminator, commands.

Each section runs in a process of its own with a time limit, and writes one JSON line a finding as soon as it has it, so
that a machine that is taken away leaves what was found. At the end: a table of what was expected beside what was found.

    python benchmarks/gpu_check.py --out found.jsonl               # on a machine with a GPU
    python benchmarks/gpu_check.py --wheels .gpu-wheels --out …    # where nothing can be fetched (make gpu-wheels)
    python benchmarks/gpu_check.py --smoke                         # every section at tiny size, on a CPU too
"""

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ALL_SECONDS = 530
# Below this nothing is worth starting.
LEAST_SECONDS = 15


class Section(NamedTuple):
    """A section's function, which is found by its name, and its time limit in seconds."""

    name: str
    seconds: int


SECTIONS = (
    Section("machine", 30),
    Section("kernels", 60),
    Section("patches", 40),
    Section("attention", 70),
    Section("policy", 150),
    Section("discriminator", 90),
    Section("commands", 170),
    Section("peaks", 60),
)


class Report:
    """Where a section says what it found; a line each, flushed.

    Args:
        path: The file of lines, appended to by one section after the other.
        section: Its name.
        smoke: Sizes are tiny.
        folder: Scratch space of all sections.
    """

    def __init__(self, path: Path, section: str, smoke: bool, folder: Path):
        self.path, self.section, self.smoke, self.folder = path, section, smoke, folder

    def __call__(self, check: str, found: Any, expected: str = "", ok: bool | None = None) -> None:
        """One finding; `ok` is None where there is nothing to hold it against."""
        line = {"section": self.section, "check": check, "found": found, "expected": expected, "ok": ok}
        text = json.dumps(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)


# Shared by sections --------------------------------------------------------------------------------------------------


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def number_type() -> Any:
    """bfloat16, in which a GPU trains; on a CPU too, slow as it is there, so that the same code runs."""
    import torch

    return torch.bfloat16


def finish() -> None:
    """Waits for what the GPU still does."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of some runs, after one that is not counted."""
    taken = [once(work) for _ in range(repeats + 1)]
    return min(taken[1:])


def once(work: Callable[[], Any]) -> float:
    """One run."""
    finish()
    start = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], Any]) -> float:
    """What a run adds at most to the device's memory; NaN on a CPU."""
    import torch

    if not torch.cuda.is_available():
        work()
        return float("nan")
    finish()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    finish()
    return torch.cuda.max_memory_allocated() - before


def apart(found: Any, wanted: Any) -> float:
    """The norm of a difference, relative to what is wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-30))


def qwen_config(smoke: bool, layers: int | None = None) -> Any:
    """The config of Qwen3-VL-4B, or of a tiny model of the same class."""
    from transformers import Qwen3VLConfig

    from prism_cli.model_configs import model_config

    values = json.loads(json.dumps(model_config("Qwen/Qwen3-VL-4B-Instruct")))
    text, vision = values["text_config"], values["vision_config"]
    if smoke:
        text |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
        text |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 152_000}
        for rope in (text.get("rope_parameters"), text.get("rope_scaling")):
            if rope:
                rope["mrope_section"] = [6, 5, 5]
        vision |= {"hidden_size": 64, "intermediate_size": 128, "depth": 3, "num_heads": 2, "out_hidden_size": 128}
        vision["deepstack_visual_indexes"] = [0, 1, 2]
    if layers is not None:
        text["num_hidden_layers"] = min(layers, text["num_hidden_layers"])
    return Qwen3VLConfig.from_dict(values)


def built(kind: Any, config: Any, dtype: Any) -> Any:
    """A model of random weights on the device."""
    import torch

    torch.manual_seed(0)
    with device():
        return kind._from_config(config, dtype=dtype)


class Picture(NamedTuple):
    """A picture as a Qwen3-VL takes it: (patches, values), (1, 3) grid, and how many tokens it is in the text."""

    pixels: Any
    grid: Any
    tokens: int


def picture(config: Any, side: int) -> Picture:
    """Noise of side × side patches."""
    import torch

    vision = config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(side * side, values, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, side, side]])
    return Picture(pixels.to(device()), grid.to(device()), (side // vision.spatial_merge_size) ** 2)


def words(count: int, seed: int) -> Any:
    """Random tokens of text."""
    import torch

    return torch.randint(1000, 100_000, (count,), generator=torch.Generator().manual_seed(seed))


# Sections ------------------------------------------------------------------------------------------------------------


def machine(report: Report) -> None:
    """What was measured on."""
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "cuda": torch.version.cuda}
    report("versions", versions)
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        report("card", {"name": card.name, "gib": round(card.total_memory / 2**30, 1)})
        report("cudnn", torch.backends.cudnn.version())
    else:
        report("card", "none: bfloat16 on a CPU, so times and memory mean nothing")


def kernels(report: Report) -> None:
    """Which kernel attention takes, and what cuDNN costs at each new length."""
    import torch
    from torch.nn.attention import SDPBackend
    from torch.nn.functional import scaled_dot_product_attention as attend

    heads, width = (2, 16) if report.smoke else (32, 128)

    def inputs(length: int) -> list[Any]:
        return [torch.randn(1, heads, length, width, device=device(), dtype=number_type()) for _ in range(3)]

    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        q, k, v = inputs(64 if report.smoke else 1024)
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=device()).tril()
        for name, how in (("causal", {"is_causal": True}), ("masked", {"attn_mask": mask})):
            choice = torch._fused_sdp_choice(q, k, v, how.get("attn_mask"), 0.0, how.get("is_causal", False))
            wanted = "EFFICIENT_ATTENTION" if name == "masked" else "FLASH_ATTENTION"
            found = SDPBackend(choice).name
            report(f"kernel {name}, cuDNN {'on' if cudnn else 'off'}", found, "" if cudnn else wanted)
        first, second = [], []
        for length in range(65, 73) if report.smoke else range(3001, 3801, 100):
            batch = inputs(length + (50 if cudnn else 0))
            first.append(once(lambda batch=batch: attend(*batch, is_causal=True)))
            second.append(once(lambda batch=batch: attend(*batch, is_causal=True)))
        slow = sorted(first)[len(first) // 2]
        quick = sorted(second)[len(second) // 2]
        times = {"first_ms": round(1e3 * slow, 2), "second_ms": round(1e3 * quick, 2)}
        expected = "first ≫ second confirms that it plans each length" if cudnn else "first < 20 ms"
        report(f"new lengths, cuDNN {'on' if cudnn else 'off'}", times, expected, None if cudnn else slow < 0.02)


def patches(report: Report) -> None:
    """The patch embedding as a convolution and as a matrix product."""
    import torch
    from torch import nn

    from prism_cli.patch_embedding import embed_patches_linearly

    width = 32 if report.smoke else 1024
    convolution = nn.Conv3d(3, width, (2, 16, 16), stride=(2, 16, 16)).to(device(), number_type())
    product = nn.Sequential(nn.Conv3d(3, width, (2, 16, 16), stride=(2, 16, 16)).to(device(), number_type()))
    product[0].load_state_dict(convolution.state_dict())
    embed_patches_linearly(product)
    for count in (64,) if report.smoke else (4096, 16_384, 65_536):
        x = torch.randn(count, 3, 2, 16, 16, device=device(), dtype=number_type())

        def step(layer: Any, x: Any = x) -> Any:
            layer.zero_grad()
            out = layer(x)
            out.float().square().mean().backward()
            return out

        way = {"linear": product, "Conv3d": convolution}
        gap = apart(step(product).detach(), step(convolution).detach())
        times = {name: round(1e3 * seconds(lambda layer=layer: step(layer), 2), 3) for name, layer in way.items()}
        report(f"{count} patches, forward and backward, ms", times, "linear < 1 ms + 1 µs a patch",
               times["linear"] < 1 + count / 1000)  # fmt: skip
        report(f"{count} patches, relative difference", round(gap, 5), "≤ 1e-2", gap <= 1e-2)


def attention(report: Report) -> None:
    """One prompt's responses packed behind it, against the padded rows of TRL's own pass."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    from prism_cli.packing import pack, prefix_attention

    heads, groups, width = (4, 2, 16) if report.smoke else (32, 8, 128)
    prompt, cases = (32, [(40, 2)]) if report.smoke else (2048, [(3000, 2), (3000, 8), (8192, 2), (8192, 8)])
    for length, count in cases:
        packing = pack([prompt], [length] * count, [0] * count).to(device())
        total = prompt + count * length
        sizes = (heads, groups, groups)
        row = [torch.randn(1, n, total, width, device=device(), dtype=number_type(), requires_grad=True) for n in sizes]
        own = [torch.cat([x[:, :, :prompt].expand(count, -1, -1, -1), responses(x, prompt, count)], 2) for x in row]
        own = [x.detach().requires_grad_() for x in own]

        def packed(row: Any = row, packing: Any = packing) -> Any:
            return prefix_attention(torch.nn.Module(), *row, None, packing)[0]

        def padded(own: Any = own) -> Any:
            return attend(*own, is_causal=True, enable_gqa=True)

        with torch.no_grad():
            behind = packed()[0, prompt:].view(count, length, heads, width).transpose(1, 2)
            gap = apart(behind, padded()[:, :, prompt:])
        name = f"P {prompt}, L {length}, B {count}"
        report(f"{name}: relative difference", round(gap, 5), "≤ 1e-2", gap <= 1e-2)
        ways = {"packed": packed, "padded": padded}
        times = {way: round(1e3 * seconds(lambda do=do: do().sum().backward(), 2), 2) for way, do in ways.items()}
        memory = {way: round(peak_bytes(lambda do=do: do().sum().backward()) / 1e9, 3) for way, do in ways.items()}
        report(f"{name}: forward and backward, ms", times, "the mask costs packed 5–6 × what flash would take")
        report(f"{name}: peak, GB", memory)


def responses(x: Any, prompt: int, count: int) -> Any:
    """(B, heads, L, D) of the parts in a row (1, heads, P + B·L, D)."""
    return x[0, :, prompt:].unflatten(1, (count, -1)).transpose(0, 1)


def policy(report: Report) -> None:
    """A 4B policy of random weights: log-probabilities packed and by TRL's own pass, memory beside the plan."""
    from types import SimpleNamespace

    import torch
    from accelerate import Accelerator
    from transformers import Qwen3VLForConditionalGeneration
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    from prism_cli.models import disable_cudnn_attention
    from prism_cli.patch_embedding import embed_patches_linearly
    from prism_cli.trainers.packed_logps import PackedLogps

    disable_cudnn_attention()
    config = qwen_config(report.smoke)
    model = built(Qwen3VLForConditionalGeneration, config, number_type())
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(4.0)  # words are as unlike in probability as a trained model's
    add_fused_lm_head(model)
    embed_patches_linearly(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = rollouts(config, *((8, 16, (24, 15)) if report.smoke else (64, 1024, (8192, 5000))))
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    own: Any = SimpleNamespace(accelerator=accelerator)
    ways = {
        "packed": lambda: PackedLogps(accelerator)(model, **batch),
        "TRL's own": lambda: GRPOTrainer._get_per_token_logps_and_entropies(own, model, **batch),
    }
    logps = {}
    for name, way in ways.items():

        def step(way: Any = way, name: str = name) -> None:
            model.zero_grad()
            found = way()[0]
            logps[name] = found.detach().float()
            found.mean().backward()

        step()
        report(f"{name}: forward and backward, s", round(once(step), 2))
        peak = peak_bytes(step) / 1e9
        here = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else float("nan")
        report(f"{name}: peak of tensors, GB", {"added": round(peak, 2), "in all": round(here, 2)})
    said = batch["attention_mask"][:, -batch["logits_to_keep"] :].bool()
    gap = (logps["packed"] - logps["TRL's own"]) * said
    mean = float(gap.abs().sum() / said.sum())
    report("mean |Δ log-probability| of a token", round(mean, 6), "≤ 0.01", mean <= 0.01)
    a_sequence = (gap.sum(1) / said.sum(1)).abs().tolist()
    report("|Δ| of a sequence's mean", [f"{one:.1e}" for one in a_sequence], "against GSPO's clip of 3e-4")
    planned = planned_pass(report.smoke)
    report("planned for a packed pass, GB", planned, "within 10 % of the packed peak in all")


def rollouts(config: Any, side: int, text: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    """TRL's batch of one prompt with a picture and its responses."""
    import torch

    one = picture(config, side)
    image = torch.full((one.tokens,), config.image_token_id)
    start, end = (torch.tensor([config.vision_start_token_id]), torch.tensor([config.vision_end_token_id]))
    prompt = torch.cat([start, image, end, words(text, 0)])
    keep, rows = max(lengths), []
    for seed, length in enumerate(lengths, 1):
        rows.append(torch.cat([prompt, words(length, seed), torch.zeros(keep - length, dtype=torch.long)]))
    ids = torch.stack(rows).to(device())
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, len(prompt) + length :] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "logits_to_keep": keep,
        "pixel_values": one.pixels.repeat(len(lengths), 1).to(number_type()),
        "image_grid_thw": one.grid.repeat(len(lengths), 1),
        "num_images": [1] * len(lengths),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
    }


def planned_pass(smoke: bool) -> Any:
    """What the plan says of weights, gradients and a pass of two responses, without optimiser; GB by component."""
    from prism_cli.assembly.planned_job import rl_job, start_of
    from prism_cli.planning.job import Device
    from prism_cli.planning.memory import moments
    from prism_cli.recipes.load import load_recipe

    changes = ["model.path=Qwen/Qwen3-VL-4B-Instruct", "launch={}", "rollouts=2", "micro_batch=2", "prompts_per_step=1"]
    changes += [
        "max_prompt_tokens=2050",
        "max_response_tokens=6596",
        "image={min_pixels: 1048576, max_pixels: 1048576}",
    ]
    recipe = load_recipe("rl", "qwen3_vl_4b", [*changes, "model.dtype=bfloat16"])
    job = rl_job(recipe, Device(True, 80e9, None), start_of(recipe))
    own = {"policy weights", "policy gradients", "activations", "logits", "bfloat16 copies"}
    passes = [moment for moment in moments(job) if moment.phase == "update" and moment.name != "optimizer step"]
    sizes = [{name: size for name, size in one.parts.items() if name in own} for one in passes]
    largest = max(sizes, key=lambda parts: sum(parts.values()))
    return {name: round(size / 1e9, 2) for name, size in largest.items()} | {
        "in all": round(sum(largest.values()) / 1e9, 2)
    }


def discriminator(report: Report) -> None:
    """How much scores move with the packing in bfloat16, and what summing gradients in bfloat16 loses."""
    import torch
    from transformers import Qwen3VLModel

    from prism_cli.discriminator.inputs import Comparisons, PromptInputs
    from prism_cli.discriminator.learner import DiscriminatorLearner
    from prism_cli.discriminator.model import Discriminator
    from prism_cli.discriminator.settings import LearnerSettings

    config = qwen_config(report.smoke, layers=12)
    # A layer's deepstack features come from its own level of the tower.
    count, side, (caption, reasoning) = (4, 8, (6, 12)) if report.smoke else (16, 32, (250, 900))
    seen = picture(config, side)
    marks = [config.vision_start_token_id, *[config.image_token_id] * seen.tokens, config.vision_end_token_id]
    prompt = PromptInputs([*marks, *words(64, 0).tolist()], seen.pixels.cpu(), seen.grid.cpu())
    texts = [
        {"perception": words(caption, 2 * i + 1).tolist(), "reasoning": words(reasoning, 2 * i + 2).tolist()}
        for i in range(count + 1)
    ]
    batch = Comparisons([prompt], texts[:1], texts[1:], [0] * count)

    def scores(dtype: Any, micro_batch: int) -> Any:
        body = built(Qwen3VLModel, config, torch.float32).to(dtype)
        torch.manual_seed(0)
        judge = Discriminator(body, ("perception", "reasoning"), 151_645, kind="dense", dropout=0.0, head_std=1.0)
        learner = DiscriminatorLearner(judge, LearnerSettings(micro_batch=micro_batch))
        return learner.score(batch).scores.float().cpu()

    exact = scores(torch.float32, 1)
    spread = exact.std(0)
    pieces = {f"micro_batch {size}": scores(number_type(), size) for size in (1, 8)}
    for name, found in pieces.items():
        noise = ((found - exact).std(0) / spread).tolist()
        report(f"bfloat16, {name}: noise / group's spread", [round(one, 4) for one in noise], "≪ 1")
    moved = ((pieces["micro_batch 1"] - pieces["micro_batch 8"]).std(0) / spread).tolist()
    report("moved by the packing / group's spread", [round(one, 4) for one in moved], "the floor is 3 × this")
    rounding(report)


def rounding(report: Report) -> None:
    """The sum of a layer's gradients over micro-batches, in bfloat16 and in float32."""
    import torch

    width, passes = (32, 16) if report.smoke else (2048, 64)
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, width, bias=False).to(device(), number_type())
    exact = torch.zeros(width, width, device=device())
    summed = torch.zeros(width, width, device=device(), dtype=number_type())
    for _ in range(passes):
        layer.zero_grad()
        x = torch.randn(256, width, device=device(), dtype=number_type())
        (layer(x).float().square().mean() / passes).backward()
        exact += layer.weight.grad
        summed += layer.weight.grad
    lost = apart(summed, exact)
    report(f"{passes} gradients summed in bfloat16: relative error", round(lost, 5),
           "> 2 % on a real model says why they are summed in float32")  # fmt: skip


def commands(report: Report) -> None:
    """The stages at tiny size under ZeRO-2 and ZeRO-3, and a run that is continued."""
    folder = report.folder
    tiny = ["data.size=64", "eval_data=null", "checkpoint.evaluate_every=null", "checkpoint.every=2", "log_every=1"]
    model = ["model.hidden=64", "model.layers=1"]
    rolled = ["prompts_per_step=2", "rollouts=4", "micro_batch=8", "max_response_tokens=24", "rollouts_every=null"]
    # An untrained policy writes nothing that a discriminator could be warmed up on: pairs come from a file.
    write_pairs(folder)
    warmup = "{data: {path: rows.jsonl}, pairs: 12, held_out: 4, batch_size: 4, epochs: 1, stop_in: null}"
    taught = ["data={path: rows.jsonl}", "teacher={type: dataset}", f"discriminator.warmup={warmup}"]
    plain = [word for word in tiny if not word.startswith("data.")]
    align = ["align", "tiny", "--from", "runs/sft", *plain, *rolled, *taught]
    base = ["sft", "tiny", *tiny, *model, "batch_size=8", "optimizer.schedule=constant"]
    jobs = {
        "sft, ZeRO-2": [*base, "max_steps=2", "launch.zero=2", "output=runs/sft"],
        "sft, ZeRO-2, continued": [*base, "max_steps=3", "launch.zero=2", "output=runs/sft"],
        "rl, ZeRO-3": ["rl", "tiny", "--from", "runs/sft", *tiny, *rolled, "max_steps=2", "launch.zero=3"],
        "align, ZeRO-2": [*align, "max_steps=2", "launch.zero=2"],
    }
    if not importable("deepspeed"):
        report("ZeRO", "not run", "DeepSpeed is not installed here", None)
        jobs = {name: [word for word in job if not word.startswith("launch.zero")] for name, job in jobs.items()}
    for name, job in jobs.items():
        started = time.perf_counter()
        code, said = ran(job, folder, report.smoke)
        report(f"{name}: exit code", code, "0", code == 0)
        report(f"{name}: s", round(time.perf_counter() - started, 1))
        if code:
            report(f"{name}: said", said[-1500:])
        stage = job[0]
        lines = folder / "runs" / stage / "metrics.jsonl"
        if lines.exists():
            losses = [json.loads(line).get("loss") for line in lines.read_text().splitlines()]
            losses = [loss for loss in losses if loss is not None]
            finite = bool(losses) and all(abs(loss) < 1e6 for loss in losses)
            report(f"{name}: losses", losses, "finite", finite)


def write_pairs(folder: Path) -> None:
    """Rows with the oracle's answer to a picture and, as the policy's, its answer to another one."""
    from prism_cli.assembly.response import grammar_of
    from prism_cli.recipes.sections import ResponseSection
    from prism_cli.worlds import world

    shapes, grammar, lines = world("shapes"), grammar_of(ResponseSection()), []
    examples = list(shapes.examples("train", 16, 0))
    texts = [grammar.render(shapes.oracle(example.question, example.image)) for example in examples]
    for example, text, other in zip(examples, texts, [*texts[1:], texts[0]], strict=True):
        example.image.save(folder / f"{example.id}.png")
        row = {"id": example.id, "question": example.question, "image": f"{example.id}.png", "answer": example.answer}
        lines.append(json.dumps({**row, "teacher_response": text, "student_response": other}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def importable(name: str) -> bool:
    """Whether a package is there."""
    return importlib.util.find_spec(name) is not None


def ran(job: list[str], folder: Path, smoke: bool) -> tuple[int, str]:
    """Exit code and output of a command of prism, as the only process of its launch."""
    said = folder / "said.txt"
    child = context(smoke).Process(target=prism, args=(job, str(folder), str(said)))
    child.start()
    child.join()
    return child.exitcode or 0, said.read_text(errors="replace") if said.exists() else ""


def prism(job: list[str], folder: str, said: str) -> None:
    """Runs a command of prism in this process, with its output in a file."""
    import socket

    os.chdir(folder)
    descriptor = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    from prism_cli.launching.allocator import expand_segments

    expand_segments()
    from prism_cli.cli.app import app

    sys.argv = ["prism", *job]
    app(prog_name="prism")


def peaks(report: Report) -> None:
    """Memory measured by the runs above beside what was planned for them."""
    for manifest in sorted(report.folder.glob("runs/*/run.json")):
        memory = json.loads(manifest.read_text()).get("memory")
        report(f"{manifest.parent.name}: GB", memory or "not measured without a GPU", "a tiny model: mostly CUDA's own")
    if report.smoke:
        report("larger models", "left out", "on a GPU: planned within 10 % of measured", None)
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.plan import measure

    for name in ("sft, wide", "rl"):
        memory = measure(name)
        ratio = memory["planned_gb"] / memory["peak_gb"]
        report(f"{name}: planned / measured", round(ratio, 3), "0.9 to 1.1", 0.9 <= ratio <= 1.1)


# Running them --------------------------------------------------------------------------------------------------------


def context(smoke: bool) -> Any:
    """Forked processes pay imports once; CUDA can't be used in one forked from a process that has used it."""
    return multiprocessing.get_context("fork" if smoke else "spawn")


def work(name: str, path: str, smoke: bool, folder: str) -> None:
    """A section, in its process; what it raises is a finding."""
    report = Report(Path(path), name, smoke, Path(folder))
    try:
        globals()[name](report)
    except Exception as error:  # noqa: BLE001 (whatever it is, the other sections go on)
        report("failed", f"{type(error).__name__}: {error}"[:500], "to run", False)
        traceback.print_exc()
        raise SystemExit(1) from None


def run(names: list[str], path: Path, smoke: bool) -> None:
    """Runs sections one after the other, each in its time."""
    end = time.monotonic() + ALL_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        for section in SECTIONS:
            if section.name not in names:
                continue
            report = Report(path, section.name, smoke, Path(folder))
            left = end - time.monotonic()
            if left < LEAST_SECONDS:
                report("not run", f"{left:.0f} s are left", "", False)
                continue
            child = context(smoke).Process(target=work, args=(section.name, str(path), smoke, folder))
            child.start()
            child.join(limit := left if smoke else min(section.seconds, left))
            if child.is_alive():
                child.kill()
                child.join()
                report("ended", f"after {limit:.0f} s", "to be done by then", False)
            elif child.exitcode and child.exitcode < 0:
                report("failed", f"killed by signal {-child.exitcode}", "to run", False)


def table(path: Path) -> int:
    """Prints what was found; gives how many findings are not as expected."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    marks = {True: "✓", False: "✗", None: "·"}
    print("\n| | section | check | found | expected |\n|---|---|---|---|---|")
    for line in lines:
        found = json.dumps(line["found"], ensure_ascii=False).replace("|", "/")[:160]
        print(f"| {marks[line['ok']]} | {line['section']} | {line['check']} | {found} | {line['expected']} |")
    return sum(line["ok"] is False for line in lines)


def install(wheels: Path, target: Path) -> None:
    """Installs those wheels that are missing here into a folder of their own."""
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            version(wheel.name.split("-")[0].replace("_", "-"))
        except PackageNotFoundError:
            missing.append(str(wheel))
    if missing:
        options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *missing], check=True)
    print(json.dumps({"installed": [Path(name).name for name in missing]}), flush=True)


def main() -> int:
    """Reads the options and runs the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="sections to run; all of them, if none is named")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, where nothing can be fetched")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.jsonl"), help="file of findings, a line each")
    asked = parser.parse_args()
    asked.out.unlink(missing_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as packages:
        if asked.wheels:
            install(asked.wheels, Path(packages))
            sys.path.insert(0, packages)
            os.environ["PYTHONPATH"] = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
        if asked.smoke:
            preload()
        run(asked.sections or [section.name for section in SECTIONS], asked.out, asked.smoke)
    return 1 if table(asked.out) else 0


def preload() -> None:
    """Imports what forked sections share."""
    import torch

    import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)

    for name in ("prism_cli.trainers.grpo", "prism_cli.trainers.sft", "prism_cli.trainers.on_policy_distill"):
        importlib.import_module(name)
    torch.set_num_threads(1)


if __name__ == "__main__":
    raise SystemExit(main())
