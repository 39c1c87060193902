"""Runs stages one after the other in the processes that a launcher started; rollouts are replayed, so a run on one
process and one on two see the same ones. Usage: -m tests.distributed.worker FOLDER JOB.json …; a job is
{"stage", "name", "recipe": {key: value}}, and its run is FOLDER/<name>."""

import faulthandler
import json
import random
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch

import prism_cli  # noqa: F401  (before transformers: it lets torchvision load beside a CPU torch)

WORDS = ("a1", "a2", "b1", "b2", "c1", "holds", "and", "plus", "red", "green", "blue", "circle", "square")


def replay() -> None:
    """Has every rollout be a text that follows from its prompt and its place in the group."""
    from trl import GRPOTrainer

    def stored(self, prompt_ids, images, multimodal_fields, num_generations, *args):
        tokenizer, start = self._tokenizer, self.accelerator.process_index * len(prompt_ids)
        texts = [_text(f"{ids} {(start + n) % num_generations}") for n, ids in enumerate(prompt_ids)]
        return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts], None

    GRPOTrainer._generate_single_turn = stored


def _text(seed: str) -> str:
    draw = random.Random(seed)
    said = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(2)]
    number = draw.randint(0, 4)
    whole = f"<caption> {said[0]} </caption> <think> {said[1]} </think> <answer> {number} </answer>"
    return whole if draw.random() < 0.75 else whole.removesuffix("</answer>")


def main(folder: Path, jobs: list[dict]) -> None:
    """Runs the jobs; an error is written beside its run, and ends them all."""
    torch.set_num_threads(1)
    from prism_cli.recipes.load import load_recipe

    replay()
    for job in jobs:
        faulthandler.dump_traceback_later(240, exit=True)  # a process that waits for ever says where
        values = {**job["recipe"], "output": str(folder / job["name"])}
        words = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        recipe = load_recipe(job["stage"], "tiny", words)
        try:
            import_module(f"prism_cli.stages.{job['stage']}").run(recipe)
        except Exception:
            (folder / f"{job['name']}.error").write_text(traceback.format_exc(), encoding="utf-8")
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), [json.loads(Path(path).read_text()) for path in sys.argv[2:]])
