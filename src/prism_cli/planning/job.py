"""The job: a stage's sizes and settings, as its memory and time depend on them."""

from dataclasses import dataclass

from prism_cli.launching.command import Launch
from prism_cli.planning.shapes import Shape

GB = 10**9


@dataclass(frozen=True)
class Device:
    """Device that the stage runs on.

    Attributes:
        accelerator: A GPU, so arithmetic is bfloat16 and activations are recomputed; else a CPU in float32.
        memory: Bytes a device.
        tflops: Arithmetic at its best, in 10¹² operations a second; None where no time is planned.
    """

    accelerator: bool
    memory: float
    tflops: float | None = None


@dataclass(frozen=True)
class Adapters:
    """LoRA.

    Attributes:
        rank: Of the adapters.
        vision: On the vision tower too.
        four_bits: The language model's frozen weights are held in 4 bits.
    """

    rank: int
    vision: bool = False
    four_bits: bool = False


@dataclass(frozen=True)
class Generation:
    """Generation of responses, and how many at once.

    Attributes:
        rollouts: Responses generated at once, a process.
        prompt: Longest prompt, in tokens.
        response: Longest response.
        vllm: Share of a device's memory vLLM takes in the training processes; 0 when it runs elsewhere; None for
            transformers.
        sleeps: vLLM gives that memory back between generations.
        split: Devices over which vLLM splits the model.
    """

    rollouts: int
    prompt: int
    response: int
    vllm: float | None = None
    sleeps: bool = True
    split: int = 1


@dataclass(frozen=True)
class Discriminator:
    """The discriminator.

    Attributes:
        shape: Its body.
        micro_batch: Rollouts a pass.
        parts: How many parts a response has.
        sees: It is shown the picture.
        warms_up: It is trained on pairs first, each behind a prompt of its own.
    """

    shape: Shape
    micro_batch: int
    parts: int
    sees: bool
    warms_up: bool


@dataclass(frozen=True)
class Job:
    """A stage of one recipe.

    Attributes:
        stage: sft, align, rl or warmup.
        device: Where.
        policy: The model that is trained.
        weight_bytes: Bytes of a weight as loaded: 4 in float32, 2 in bfloat16.
        checkpointing: Activations of a layer are computed again in the backward pass.
        autocast: Arithmetic in bfloat16 beside float32 weights.
        launch: Processes and sharding.
        adapters: LoRA, or None to train all weights.
        micro_batch: Rows a forward pass of the update.
        passes: Forward passes a step, a process.
        prompt: Longest prompt, in tokens; of SFT the full row.
        response: Longest response; 0 in SFT.
        pixels: Pixels of a picture at most; a row is taken to have one.
        group: Rollouts a prompt; 1 in SFT.
        reference: A copy of the starting policy is kept, for the KL divergence.
        generation: Rollouts, or None.
        discriminator: The discriminator, or None.
        steps: Optimiser steps, None where nobody knows.
        packed: Rollouts of a prompt share its tokens in the update.
    """

    stage: str
    device: Device
    policy: Shape
    weight_bytes: int
    checkpointing: bool
    autocast: bool
    launch: Launch
    adapters: Adapters | None
    micro_batch: int
    passes: int
    prompt: int
    response: int
    pixels: int
    group: int
    reference: bool
    generation: Generation | None
    discriminator: Discriminator | None
    steps: int | None
    packed: bool
