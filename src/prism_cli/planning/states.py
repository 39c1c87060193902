"""Training states: the bytes that training a model keeps on a device while nothing is computed."""

from dataclasses import dataclass

from prism_cli.planning.activations import Arithmetic
from prism_cli.planning.job import Discriminator, Job
from prism_cli.planning.shapes import Shape

# bitsandbytes' NF4 with both levels of scales.
FOUR_BITS = 0.52
# Numbers in a bucket of gradients, DeepSpeed's default and the discriminator's, and of weights that ZeRO-3 holds
# gathered at most.
BUCKET, DISCRIMINATOR_BUCKET, GATHERED = 500_000_000, 50_000_000, 1_000_000_000


@dataclass(frozen=True)
class States:
    """Training states of a model on one device.

    Attributes:
        weights: Bytes.
        gradients: Bytes, once all are there.
        optimizer: AdamW's moments, and float32 weights where others are computed with.
        copies: bfloat16 copies of the weights while a pass lasts.
        buffers: What processes exchange gradients and weights through.
        stepping: What an optimiser step adds for its while.
        how: Arithmetic.
        host: Bytes of main memory, a process.
        embedding: A second gradient of the embedding, for a moment.
    """

    weights: float
    gradients: float
    optimizer: float
    copies: float
    buffers: float
    stepping: float
    how: Arithmetic
    host: float
    embedding: float


def policy_states(job: Job) -> States:
    """Training states of the policy."""
    shape, adapters = job.policy, job.adapters
    how = Arithmetic(job.weight_bytes, job.autocast, job.checkpointing)
    if adapters is None:
        return _states(job, shape, shape.weights, 0, how)
    trained = adapters.rank * shape.adapters[1 if adapters.vision else 0]
    rounded = shape.linear if adapters.four_bits else 0
    return _states(job, shape, trained, rounded, how, frozen=True)


def discriminator_states(job: Job, discriminator: Discriminator) -> States:
    """Training states of the discriminator: float32 weights."""
    shape = discriminator.shape
    trained = shape.weights if discriminator.sees or shape.vision is None else shape.weights - shape.vision.weights
    how = Arithmetic(4, job.device.accelerator, job.device.accelerator)
    # Its optimiser works on all weights at once, and needs a number more for each of them meanwhile.
    return _states(job, shape, trained, 0, how, spare=4 if job.device.accelerator else 0, bucket=DISCRIMINATOR_BUCKET)


def _states(
    job: Job,
    shape: Shape,
    trained: int,
    rounded: int,
    how: Arithmetic,
    frozen: bool = False,
    spare: int = 0,
    bucket: int = BUCKET,
) -> States:
    launch, world = job.launch, job.launch.world_size
    full = shape.weights - rounded
    weight = how.weight_bytes
    if launch.zero is None:
        weights = rounded * FOUR_BITS + full * weight + (trained * 4 if frozen else 0)
        grown = 4 if frozen else weight
        # Adapters leave the weights frozen, and autocast keeps no copies of those.
        dense = shape.weights - shape.embedding - shape.experts
        copies = 2 * dense if how.autocast and not frozen else 0
        buffers = trained * grown if world > 1 else 0
        return States(
            weights, trained * grown, 2 * trained * grown, copies, buffers, trained * spare, how, 0,
            0 if frozen else 4 * shape.vocabulary * shape.text.hidden,
        )  # fmt: skip
    compute = 2 if job.device.accelerator else 4
    how = Arithmetic(compute, False, how.checkpointing)
    full = (full + (trained if frozen else 0)) * compute
    optimizer, host = 12 * trained / world, 0.0
    stepping = 4 * trained / world
    weights = rounded * FOUR_BITS + (full / world if launch.zero == 3 else full)
    buffers = 2 * min(bucket, trained) * 4  # gradients are exchanged and summed in float32
    if launch.zero == 3:
        buffers += min(GATHERED, shape.weights) * compute if world > 1 or launch.offload else 0
    if launch.offload:
        host, optimizer = optimizer + stepping, 0.0
        stepping = 0.0
        if launch.zero == 3:
            host, weights = host + weights, 0.0
    gradients = 4 * trained / world
    embedding = 0 if frozen else 4 * shape.vocabulary * shape.text.hidden
    return States(weights, gradients, optimizer, 0, buffers, stepping, how, host, embedding)
