"""Under ZeRO gradients of bfloat16 passes are summed over micro-batches and processes in float32."""

import copy

import pytest
import torch
from torch import nn

from prism_cli.processes import deepspeed
from prism_cli.trainers.arguments import deepspeed_settings
from tests.distributed.test_discriminator import pair

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
PASSES = 64


def policy(folder, zero):
    """The policy's settings on a small model: gradients of 64 passes, and what they should be; (W,) each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 32)).bfloat16()
    plain = copy.deepcopy(model)
    settings = deepspeed_settings(zero, offload=False)
    settings |= {"bf16": {"enabled": True}, "gradient_clipping": 0.0, "gradient_accumulation_steps": PASSES}
    settings |= {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 2 * PASSES, "steps_per_print": 10**9}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = deepspeed().initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)[0]
    torch.manual_seed(1 + torch.distributed.get_rank())
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in plain.parameters()]
    for n in range(PASSES):
        x = torch.randn(1, 32).bfloat16()
        plain.zero_grad()
        (loss_of(plain(x)) / PASSES).backward()
        for total, weight in zip(sums, plain.parameters(), strict=True):
            total += weight.grad
        engine.backward(loss_of(engine(x)))
        if n < PASSES - 1:
            engine.step()
    return gathered(model.parameters(), sums)


def loss_of(out):
    return (out.float() - 1).square().mean()


def gathered(weights, sums):
    """ZeRO's gradients, and the mean over processes of the sums."""
    from deepspeed.utils import safe_get_full_grad

    wanted = torch.cat([total.flatten() for total in sums])
    torch.distributed.all_reduce(wanted)
    return torch.cat([safe_get_full_grad(weight).float().flatten() for weight in weights]), wanted / 2


def judged(folder, zero):
    """The same of a discriminator, whose engine is its own."""
    from prism_cli.discriminator.sharding import Shards
    from tests.unit.test_discriminator_model import discriminator, prompt

    torch.manual_seed(0)
    one = discriminator("dense").bfloat16()
    plain = copy.deepcopy(one)
    shards = Shards(one, torch.optim.AdamW(one.parameters(), lr=1e-3), 1e9, True, zero, False)
    rank = torch.distributed.get_rank()
    draw = torch.Generator().manual_seed(rank)
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in plain.named_parameters()}
    view = prompt()
    if view.pixel_values is not None:
        view = view._replace(pixel_values=view.pixel_values.bfloat16())
    for n in range(PASSES):
        row = plain.inputs([view], [(0, torch.randint(4, 20, (6,), generator=draw).tolist())])
        plain.zero_grad()
        reading = plain.read(row)
        (plain.score(reading.hidden).sum() / PASSES).backward()
        for name, weight in plain.named_parameters():
            if weight.grad is not None:
                sums[name] += weight.grad
        shards.backward(shards.read(row, None, False).scores.sum() / PASSES, last=n == PASSES - 1)
    seen = {name: weight for name, weight in one.named_parameters() if sums[name].any()}
    return gathered(seen.values(), [sums[name] for name in seen])


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("work", [policy, judged])
def test_the_gradient_of_64_passes_is_the_float32_sum_of_theirs(tmp_path, work, zero):
    for found, wanted in pair(work, tmp_path, zero):
        assert wanted.norm() > 0
        assert float((found - wanted).norm() / wanted.norm()) < 1e-3
