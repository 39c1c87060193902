"""A discriminator's folder made from a dense model's folder, weight by weight, so that neither need fit in memory."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLModel, Qwen3VLMoeModel

from prism_cli.discriminator.model import HEAD_STD
from prism_cli.discriminator.saved import CREATED_FILE, HEAD_FILE, SETTINGS_FILE
from prism_cli.discriminator.settings import Upcycling
from prism_cli.discriminator.upcycle import mixture_config, mixture_weight, upcycle
from prism_cli.errors import CheckpointError

SHARD_BYTES = 2 << 30
SAME = 1e-4
INDEX = "model.safetensors.index.json"


class DenseWeights:
    """The weights of a dense body on disk by their name in the body, each read at its call.

    Args:
        folder: Holds model.safetensors, or shards with their index.

    Raises:
        CheckpointError: neither is there.
    """

    def __init__(self, folder: Path):
        index, single = folder / INDEX, folder / "model.safetensors"
        if index.is_file():
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        elif single.is_file():
            with safe_open(single, framework="pt") as file:
                files = dict.fromkeys(file.keys(), single.name)
        else:
            raise CheckpointError(
                f"{folder}: no model.safetensors and no {INDEX}", "give a model whose weights are safetensors"
            )
        # A full model has its body under `model.`, a body alone has not.
        self._places = {name.removeprefix("model."): (folder / file, name) for name, file in files.items()}
        self._folder = folder

    def __call__(self, name: str) -> Tensor:
        """One weight.

        Raises:
            CheckpointError: the files don't hold it.
        """
        if name not in self._places:
            raise CheckpointError(f"{self._folder}: the weight {name} is missing", "fetch or write the model again")
        path, stored = self._places[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(stored)


def mixture(config: Qwen3VLConfig, rule: Upcycling) -> Qwen3VLMoeModel:
    """The mixture as names, shapes and its config, without memory for weights."""
    with torch.device("meta"):
        return Qwen3VLMoeModel._from_config(mixture_config(config, rule), dtype=config.dtype)


class NewDiscriminator(NamedTuple):
    """A discriminator that is to be made.

    Attributes:
        source: The dense model, as the user knows it, for the record.
        rule: Of the upcycling.
        settings: The values of discriminator.json.
        head_std: Standard deviation of the head's weights.
    """

    source: str
    rule: Upcycling
    settings: Mapping[str, Any]
    head_std: float = HEAD_STD


def create(
    folder: Path,
    output: Path,
    new: NewDiscriminator,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """A new discriminator's folder, as `Discriminator.from_pretrained` opens it.

    Its body is what `upcycle` gives, bit for bit. In memory are the weights of one shard, and those that one more is
    made of. The folder is there once it is complete.

    Args:
        folder: A dense Qwen3-VL, or its body.
        output: The folder to write; must not be there.
        new: What is made.
        shard_bytes: Largest file of weights; one weight may be larger.
        on_progress: Called with the number of weights that were made.

    Raises:
        CheckpointError: weights are missing.
    """
    rule = new.rule
    dense = DenseWeights(folder)
    moe = mixture(Qwen3VLConfig.from_pretrained(folder), rule)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    partial.mkdir(parents=True)
    moe.config.save_pretrained(partial)

    def weights() -> Iterator[tuple[str, Tensor]]:
        for done, name in enumerate(moe.state_dict(), 1):
            yield name, mixture_weight(name, dense, rule)
            on_progress(done)

    _write_shards(weights(), partial, shard_bytes)
    like = dense("language_model.norm.weight")
    generator = torch.Generator().manual_seed(rule.seed)
    head = new.head_std * torch.randn(1, len(like), generator=generator)
    save_file({"weight": head.to(like.dtype)}, partial / HEAD_FILE)
    (partial / SETTINGS_FILE).write_text(json.dumps(dict(new.settings), indent=2) + "\n", encoding="utf-8")
    made = {"from": new.source, **vars(rule), "head_std": new.head_std}
    (partial / CREATED_FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    partial.rename(output)


def _write_shards(weights: Iterator[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> None:
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, weight in weights:
        if held and size + weight.nbytes > shard_bytes:
            write()
            size = 0
        held[name] = weight.contiguous()
        size, total = size + weight.nbytes, total + weight.nbytes
        del weight  # or it would live on while the next is made
    write()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for number, name in enumerate(names):
        (folder / f"shard-{number}").rename(folder / name)
    weight_map = {weight: file for file, held_there in zip(names, shards, strict=True) for weight in held_there}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def distance(moe: Any, dense: Qwen3VLModel, inputs: Mapping[str, Any]) -> float:
    """The largest difference of two bodies' hidden states, as a share of the dense one's largest.

    Args:
        moe: A body.
        dense: The body it was made from.
        inputs: Of both.
    """
    with torch.no_grad():
        states, own = (body(**inputs, use_cache=False).last_hidden_state for body in (moe, dense))
    return float((states - own).abs().max() / own.abs().max())


def upcycled_distance(dense: Qwen3VLModel, rule: Upcycling, inputs: Mapping[str, Any]) -> float:
    """The distance of the mixture without noise: `SAME` at most, or upcycling does not fit this model."""
    silent = Upcycling(rule.experts, rule.top_k, noise=0.0, seed=rule.seed)
    return distance(upcycle(dense, silent), dense, inputs)
