"""Time of a stage, from the arithmetic it needs at a stated share of a stated peak: an estimate."""

from typing import NamedTuple

from prism_cli.planning.job import Job
from prism_cli.planning.shapes import Shape

# Shares of a GPU's peak in bfloat16 that well-kept trainers reach, and generation far less; see docs/plan.md.
TRAINING, VLLM, TRANSFORMERS = 0.35, 0.05, 0.005


class Effort(NamedTuple):
    """Seconds of a step, each by what it is spent on, and of the stage.

    Attributes:
        step: Phase → seconds a step.
        steps: Steps, None where nobody knows.
    """

    step: dict[str, float]
    steps: int | None

    @property
    def seconds(self) -> float | None:
        """The full stage, teacher and checkpoints left out."""
        return None if self.steps is None else self.steps * sum(self.step.values())


def forward(shape: Shape, tokens: float, context: float, patches: float) -> float:
    """Operations of a forward pass.

    Args:
        shape: Of the model.
        tokens: Read.
        context: Tokens each of them looks back on, on average.
        patches: Of pictures.
    """
    text, vision = shape.text, shape.vision
    idle = shape.experts * (1 - text.active / _experts(shape)) if shape.experts else 0
    output = shape.vocabulary * text.hidden if shape.head else 0
    total = tokens * (2 * (text.weights - idle + output) + 4 * text.layers * text.query * context)
    return total + (2 * patches * vision.weights if vision else 0)


def _experts(shape: Shape) -> int:
    text = shape.text
    return max(1, round(shape.experts / (3 * text.hidden * text.inner * text.layers)))


def effort(job: Job) -> Effort | None:
    """Seconds at the longest responses; None on a device whose peak isn't known, and for what has no steps.

    Args:
        job: The stage.
    """
    if job.device.tflops is None or job.stage == "warmup":
        return None
    peak = job.device.tflops * 1e12
    length = job.prompt + job.response
    rows = job.micro_batch * job.passes
    patches = job.policy.patches(job.pixels)
    once = forward(job.policy, rows * length, length / 2, rows * patches)
    # Backward costs two forward passes, and one more where activations are computed again.
    step = {"update": once * (4 if job.checkpointing else 3) / (peak * TRAINING)}
    if job.generation is not None:
        prompts = forward(job.policy, rows * job.prompt, job.prompt / 2, rows * patches)
        responses = forward(job.policy, rows * job.response, job.prompt + job.response / 2, 0)
        share = TRANSFORMERS if job.generation.vllm is None else VLLM
        step["generation"] = (prompts / TRAINING + responses / share) / peak
    if job.discriminator is not None:
        groups = rows / job.group
        texts = groups * (job.group + 1) * job.response + groups * job.prompt
        read = forward(job.discriminator.shape, texts, job.prompt + job.response / 4, groups * patches)
        step["discriminator"] = read * 4 / (peak * TRAINING)
    return Effort(step, job.steps)
