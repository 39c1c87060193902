"""Router loads: the share of each part's tokens that visit each expert."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from prism_cli import processes
from prism_cli.discriminator.model import Discriminator


class RouterLoads:
    """Counts the experts that a part's tokens visit, in every pass of the body while `router_loads` is open.

    Args:
        parts: Names of the parts; they come in this order, one after the other, over however many passes.
        experts: Experts a layer.
    """

    def __init__(self, parts: tuple[str, ...], experts: int):
        self.parts = parts
        self.experts = experts
        self._visits = torch.zeros(len(parts), experts, dtype=torch.long)
        self._tokens = torch.zeros(len(parts), dtype=torch.long)
        self._part_of = torch.zeros(0, dtype=torch.long)
        self._seen = 0

    def metrics(self) -> dict[str, float]:
        """`discriminator/router_load/<part>/<expert>`: share of the part's tokens that visit the expert, averaged over
        layers and processes, which all call this; top-k over E experts spreads evenly at k/E. Empty where nothing was
        read."""
        everyones = processes.gather((self._visits, self._tokens))
        visits, tokens = (torch.stack(counts).sum(0) for counts in zip(*everyones, strict=True))
        return {
            f"discriminator/router_load/{part}/{expert}": float(visits[k, expert] / tokens[k])
            for k, part in enumerate(self.parts)
            if tokens[k]
            for expert in range(self.experts)
        }

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a pass: notes which tokens, at the row's end, belong to which part."""
        packing = kwargs["packing"]
        lengths = packing.ends - packing.starts + 1
        part = (self._seen + torch.arange(len(lengths), device=lengths.device)) % len(self.parts)
        self._part_of = part.repeat_interleave(lengths)
        self._seen += len(lengths)

    def count(self, module: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        """After a layer's router: counts its choices (T, top_k)."""
        chosen = output[2][len(output[2]) - len(self._part_of) :]
        places = (self._part_of[:, None] * self.experts + chosen).flatten()
        self._visits += torch.bincount(places, minlength=self._visits.numel()).view_as(self._visits).cpu()
        self._tokens += torch.bincount(self._part_of, minlength=len(self.parts)).cpu()


@contextmanager
def router_loads(discriminator: Discriminator) -> Iterator[RouterLoads]:
    """Listens to the routers of a `moe` discriminator; of others, and where every expert reads every token, nothing."""
    config = discriminator.body.config.text_config
    loads = RouterLoads(discriminator.parts, getattr(config, "num_experts", 0))
    with ExitStack() as stack:
        if discriminator.kind == "moe" and config.num_experts_per_tok < config.num_experts:
            text = discriminator.body.language_model
            stack.callback(text.register_forward_pre_hook(loads.begin, with_kwargs=True).remove)
            for layer in text.layers:
                stack.callback(layer.mlp.gate.register_forward_hook(loads.count).remove)
        yield loads
