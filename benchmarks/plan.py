"""Memory as planned beside memory as measured, on this machine's CPU: `python benchmarks/plan.py [CASE …]`.

Random Qwen3-VL models of 27 to 86 million weights train for two steps on the picture world, through the stages that
users run, each in a process of its own. The plan is made for the rows that come, so nothing is left to worst cases.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

# Width, layers, MLP, vocabulary of the model; the stage; what its recipe says beside.
SMALL = {"hidden": 512, "layers": 8, "inner": 1536, "words": 20_000}
WIDE = {"hidden": 1024, "layers": 6, "inner": 3072, "words": 8_000}
WHOLE = {"parts": {"whole": {}}, "answer": None, "instruction": None}
ROLLOUTS = {"prompts_per_step": 2, "rollouts": 8, "micro_batch": 8, "max_response_tokens": 96}
DISCRIMINATOR = {"micro_batch": 8, "warmup": {"pairs": 4, "held_out": 2, "batch_size": 2}}
FEW = {**SMALL, "words": 0}  # those of the tokenizer: what is sampled must be text
CASES = {
    "sft": (SMALL, "sft", {"batch_size": 24}),
    "sft, wide": (WIDE, "sft", {"batch_size": 16}),
    "sft, LoRA": (SMALL, "sft", {"batch_size": 24, "lora": {}}),
    "sft, checkpointing": (SMALL, "sft", {"batch_size": 48, "trainer": {"gradient_checkpointing": True}}),
    "rl": (SMALL, "rl", ROLLOUTS),
    "align, dense": (FEW, "align", {**ROLLOUTS, "discriminator": {"type": "dense", **DISCRIMINATOR}}),
    "align, moe": (FEW, "align", {**ROLLOUTS, "discriminator": {"type": "moe", **DISCRIMINATOR}}),
}


def model(folder: Path, hidden: int, layers: int, inner: int, words: int) -> None:
    """Writes a random model with the tiny world's processor."""
    from prism_cli.tiny_models.tiny import tiny_model, tiny_processor
    from prism_cli.worlds import world

    import torch  # isort: skip
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # isort: skip

    words_known = [*world("shapes").vocabulary, "<caption>", "</caption>", "<think>", "</think>", "<answer>"]
    processor = tiny_processor([*words_known, "</answer>"], 48 * 48)
    values = tiny_model(processor).config.to_dict()
    heads = hidden // 64
    values["text_config"] |= {
        "vocab_size": words or len(processor.tokenizer),
        "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10]},
    }  # fmt: skip
    values["vision_config"] |= {
        "hidden_size": 128, "intermediate_size": 512, "depth": 4, "num_heads": 4, "out_hidden_size": hidden,
    }  # fmt: skip
    torch.manual_seed(0)
    made = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**values))
    made.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    made.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    made.save_pretrained(folder)
    processor.save_pretrained(folder)


def recipe(folder: Path, stage: str, changes: dict) -> dict:
    """A recipe whose limits are the lengths of the rows that come."""
    shared = {
        "model": {"path": str(folder / "model")}, "data": {"type": "world", "size": 144}, "max_steps": 2,
        "image": {"min_pixels": 48 * 48, "max_pixels": 48 * 48}, "output": str(folder / "run"),
        "checkpoint": {"every": 100},
    }  # fmt: skip
    # A random policy writes no tags, so its whole text is the one part.
    if stage == "sft":
        return {**shared, "response": {"instruction": None}, "max_tokens": 70, **changes}
    # None ends early: the plan is for the longest.
    trainer = {"generation_kwargs": {"min_new_tokens": changes["max_response_tokens"]}}
    rollouts = {"response": WHOLE, "max_prompt_tokens": 25, "trainer": trainer}
    return {**shared, **rollouts, **changes, **_stage(stage, folder)}


def _stage(stage: str, folder: Path) -> dict:
    if stage == "align":
        return {"teacher": {"type": "dataset"}, "data": {"path": str(folder / "rows.jsonl")}}
    return {"rewards": {"max_wrong": 1.0}}


def measure(name: str) -> dict[str, float]:
    """One case in a process of its own: gigabytes measured and planned. It is forked, so imports are paid once."""
    sizes, stage, changes = CASES[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / f"{stage}.yaml").write_text(json.dumps(recipe(folder, stage, changes)))
        for work in (lambda: model(folder / "model", **sizes), lambda: rows(folder), lambda: train(stage, folder)):
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(f"{name} failed")
        return json.loads((folder / "run" / "run.json").read_text())["memory"]


def rows(folder: Path) -> None:
    """Prompts with pictures and a teacher's answers as long as the policy's rollouts will be."""
    from prism_cli.worlds import world

    lines = []
    for example in world("shapes").examples("train", 24, 0):
        example.image.save(picture := folder / f"{example.id}.png")
        words = " ".join([*example.caption.split(), *["yes"] * 96][:95])
        lines.append(json.dumps({"question": example.question, "image": str(picture), "teacher_response": words}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def train(stage: str, folder: Path) -> None:
    """Runs the stage."""
    from prism_cli.recipes.load import load_recipe

    with open(folder / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        import_module(f"prism_cli.stages.{stage}").run(load_recipe(stage, folder / f"{stage}.yaml"))


def main(names: list[str]) -> None:
    """Prints the table."""
    import prism_cli.assembly.training
    import prism_cli.trainers.grpo
    import prism_cli.trainers.on_policy_distill
    import prism_cli.trainers.sft  # noqa: F401

    table = Table("case", "planned GB", "measured GB", "planned / measured")
    for name in names or CASES:
        found = measure(name)
        ratio = f"{found['planned_gb'] / found['peak_gb']:.2f}"
        print(f"{name}: {found['planned_gb']} planned, {found['peak_gb']} measured, {ratio}", file=sys.stderr)
        table.add_row(name, f"{found['planned_gb']:.2f}", f"{found['peak_gb']:.2f}", ratio)
    Console().print(table)


# Freed memory goes back to the system at once, so that the peak is that of tensors.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

if __name__ == "__main__":
    if os.environ.get("MALLOC_ARENA_MAX") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | QUIET)
    main(sys.argv[1:])
