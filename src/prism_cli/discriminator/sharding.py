"""A discriminator sharded over the processes that train it, by DeepSpeed ZeRO."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from prism_cli.discriminator.inputs import PromptInputs, ScoreInputs, build_score_inputs
from prism_cli.discriminator.model import Discriminator, unsharded_models
from prism_cli.discriminator.replicas import SHARDS_FILE, Pass, Scored, refuse_other
from prism_cli.processes import FLOAT32_GRADIENTS, deepspeed, is_main, world_size

SHARDS = "shards"
# Elements that ZeRO gathers or reduces at once: 100 MB in bfloat16.
BUCKET = 50_000_000


class Shards:
    """A discriminator sharded over all processes by a DeepSpeed engine of its own, beside whatever shards the policy.

    Args:
        discriminator: Trained; under ZeRO-3 no process holds all of it any more. Open the saved one afterwards.
        optimizer: Of its weights.
        max_grad_norm: Gradients are scaled down to this norm.
        bf16: Hold and compute bfloat16 weights; the optimiser's own stay in float32.
        zero: 2 shards gradients and optimiser states, 3 the weights too.
        offload: Keep the optimiser's states, and under ZeRO-3 the weights, in main memory.

    Raises:
        RecipeError: DeepSpeed is not installed.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        bf16: bool,
        zero: Literal[2, 3],
        offload: bool,
    ):
        self.discriminator, self.zero, self.world = discriminator, zero, world_size()
        self._engine: Any = deepspeed().initialize(
            model=Pass(discriminator, bf16=False),  # the weights are bfloat16 then, and need no casts
            optimizer=optimizer,
            config=_engine_config(discriminator, max_grad_norm, bf16, zero, offload),
            dist_init_required=False,
        )[0]
        self._looks = discriminator.kind != "text_only"

    def agreed(self, rows: Sequence[int]) -> list[int]:
        """Rows that each chunk is read in: as many as on the process with the most, because all processes take part in
        every pass and every backward."""
        device = self._engine.device
        count = torch.tensor(len(rows), device=device)
        dist.all_reduce(count, dist.ReduceOp.MAX)
        most = torch.zeros(int(count), dtype=torch.long, device=device)
        most[: len(rows)] = torch.tensor(rows, dtype=torch.long)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most.tolist()

    def read(self, row: ScoreInputs | None, dropout: Tensor | None, balance: bool) -> Scored:
        """One pass over a row; None reads next to nothing, for a process that has no more rows than others."""
        if row is None:
            readout = self.discriminator.readout_id
            row = build_score_inputs([PromptInputs([readout])], [], readout).to(self._engine.device)
        return self._engine(row, dropout, balance, look=self._looks)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a loss's gradients; `last` before the step."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self) -> float:
        """One step; gives the gradient's norm over all processes, after which a step that was not finite shows."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save_discriminator(self, folder: Path) -> None:
        """Gathers the optimiser's float32 weights on the main process, which writes a plain discriminator."""
        weights = {}
        for name, weight in self.discriminator.named_parameters():
            gathered = _gathered(weight)
            if is_main():
                weights[name] = gathered.detach().float().cpu().clone()
        if is_main():
            _plain(self.discriminator, weights).save_pretrained(folder)

    def save(self, folder: Path, progress: dict[str, Any]) -> None:
        """Each process writes its shards."""
        folder.mkdir(parents=True, exist_ok=True)
        self._engine.save_checkpoint(str(folder), SHARDS, client_state={"progress": progress}, save_latest=False)
        if is_main():
            (folder / SHARDS_FILE).write_text(json.dumps({"zero": self.zero, "processes": self.world}))

    def load(self, folder: Path) -> dict[str, Any]:
        """Continues from what `save` wrote on as many processes; gives the progress.

        Raises:
            CheckpointError: written by another way, or on another number of processes.
        """
        refuse_other(folder, {"zero": self.zero, "processes": self.world})
        return self._engine.load_checkpoint(str(folder), SHARDS)[1]["progress"]

    save_trained, load_trained = save, load

    def close(self) -> None:
        """Lets go of the engine's memory."""
        self._engine.destroy()


def _engine_config(
    discriminator: Discriminator, max_grad_norm: float, bf16: bool, zero: int, offload: bool
) -> dict[str, Any]:
    width = discriminator.body.config.text_config.hidden_size
    bucket = min(BUCKET, sum(weight.numel() for weight in discriminator.parameters()))
    sharding: dict[str, Any] = {"stage": zero, "reduce_bucket_size": bucket}
    aside = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if zero == 2:
        sharding |= {"allgather_bucket_size": bucket}
    else:
        # Vectors stay on every process: to gather them costs more than they weigh.
        sharding |= {"stage3_prefetch_bucket_size": bucket, "stage3_param_persistence_threshold": 10 * width}
    if offload:
        sharding |= {"offload_optimizer": aside} | ({"offload_param": aside} if zero == 3 else {})
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the loss is divided already; the last backward is named to the engine
        "gradient_clipping": max_grad_norm,
        "zero_optimization": sharding,
        "zero_force_ds_cpu_optimizer": False,  # torch's is fused on a CPU too, and need not be compiled first
        "bf16": {"enabled": bf16},
        **FLOAT32_GRADIENTS,
        "steps_per_print": 1_000_000_000,
    }


def _gathered(weight: Tensor) -> Tensor:
    """A weight gathered from its shards, in float32 where it is trained."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if weight.requires_grad:
        gathered = safe_get_full_fp32_param(weight)
        assert gathered is not None, "the engine holds what is trained in float32"
        return gathered
    with zero.GatheredParameters([weight]):
        return weight.data.clone()


def _plain(discriminator: Discriminator, weights: dict[str, Tensor]) -> Discriminator:
    """A discriminator like this one that holds these weights, for saving."""
    body = discriminator.body
    with unsharded_models(), torch.device("meta"):
        bare = type(body)._from_config(body.config, dtype=torch.float32)
        settings = {name: getattr(discriminator, name) for name in ("parts", "readout_id", "kind", "readout")}
        plain = Discriminator(bare, **settings, dropout=discriminator.dropout)
    plain.load_state_dict(weights, assign=True)
    return plain
