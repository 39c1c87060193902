"""Memory a device, moment by moment: what lies there and what a pass adds, in bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from prism_cli.phases import DISCRIMINATOR, GENERATION, UPDATE, WARM_UP
from prism_cli.planning.activations import Arithmetic, Row, kept, momentary, one_layer, packed_row
from prism_cli.planning.job import GB, Discriminator, Generation, Job
from prism_cli.planning.shapes import Shape
from prism_cli.planning.states import States, discriminator_states, policy_states

# TRL computes the tokens' probabilities in tiles of so many tokens and words.
TILE_TOKENS, TILE_WORDS = 4096, 32768
# Triton's kernel works in the tile; without it, torch holds so many more of its size in float32.
WITHOUT_TRITON = 7.25
# What a process takes beside its tensors: CUDA's own, and holes between tensors.
CONTEXT, HOLES = 1.0 * GB, 0.05

COMPONENTS = (
    "policy weights",
    "policy gradients",
    "policy optimizer",
    "reference policy",
    "discriminator weights",
    "discriminator gradients",
    "discriminator optimizer",
    "optimizer step",
    "exchange",
    "bfloat16 copies",
    "activations",
    "logits",
    "pictures",
    "KV cache",
    "vLLM",
    "CUDA and holes",
)


@dataclass
class Moment:
    """One moment of a phase.

    Attributes:
        phase: generation, warm-up, discriminator or update.
        name: Which moment of it.
        parts: Component → bytes on one device.
    """

    phase: str
    name: str
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())


def moments(job: Job) -> list[Moment]:
    """Every moment of a stage that may be its largest; training has gone on for a step."""
    all_moments = list(_moments(job))
    if job.device.accelerator:
        for moment in all_moments:
            free = moment.parts.get("vLLM", 0)
            moment.parts["CUDA and holes"] = CONTEXT + HOLES * (moment.total - free)
    return [
        Moment(m.phase, m.name, {name: m.parts[name] for name in COMPONENTS if m.parts.get(name)}) for m in all_moments
    ]


def peaks(job: Job) -> dict[str, Moment]:
    """Phase → its largest moment."""
    largest: dict[str, Moment] = {}
    for moment in moments(job):
        if moment.phase not in largest or moment.total > largest[moment.phase].total:
            largest[moment.phase] = moment
    return largest


def peak(job: Job) -> float:
    """Bytes on a device at the worst moment."""
    return max(moment.total for moment in moments(job))


def host_bytes(job: Job) -> float:
    """Main memory that offloaded states take, a process."""
    trained = [policy_states(job)] if job.stage != "warmup" else []
    if job.discriminator:
        trained.append(discriminator_states(job, job.discriminator))
    return sum(states.host for states in trained)


def _moments(job: Job) -> Iterator[Moment]:
    policy = policy_states(job)
    if job.stage == "warmup":
        lasting: dict[str, float] = {"policy weights": job.policy.weights * job.weight_bytes}
    else:
        lasting = {"policy weights": policy.weights, "policy optimizer": policy.optimizer, "exchange": policy.buffers}
        if job.reference:
            lasting["reference policy"] = job.policy.weights * job.weight_bytes
    if job.discriminator and job.discriminator.warms_up:
        yield from _warm_up(job, job.discriminator, lasting["policy weights"])
    if job.stage == "warmup":
        if job.generation:
            yield _generation(job, job.generation, lasting, policy)
        return
    if job.discriminator:
        lasting = _with_discriminator(lasting, discriminator_states(job, job.discriminator))
    if job.generation:
        yield _generation(job, job.generation, lasting, policy)
        if not job.generation.sleeps:
            lasting["vLLM"] = _vllm(job, job.generation)
    lasting["pictures"] = _pictures(job)
    if job.discriminator:
        yield from _discriminator_update(job, job.discriminator, lasting)
    many, triton = job.passes > 1, job.device.accelerator
    yield from _training(
        UPDATE, lasting, "policy", policy, job.policy, _update_row(job), many, _trains_vision(job), triton
    )


def _with_discriminator(lasting: dict[str, float], states: States) -> dict[str, float]:
    added = {"discriminator weights": states.weights, "discriminator optimizer": states.optimizer}
    return lasting | added | {"exchange": lasting.get("exchange", 0) + states.buffers}


def _warm_up(job: Job, discriminator: Discriminator, policy_weights: float) -> Iterator[Moment]:
    """The warm-up: the policy is there, its optimiser is not yet."""
    states = discriminator_states(job, discriminator)
    lasting = _with_discriminator({"policy weights": policy_weights}, states)
    # Each pair stands behind a prompt of its own.
    row = _discriminator_row(job, discriminator, discriminator.micro_batch, 2 * discriminator.micro_batch)
    yield from _training(WARM_UP, lasting, "discriminator", states, discriminator.shape, row, many=True)


def _discriminator_update(job: Job, discriminator: Discriminator, lasting: dict[str, float]) -> Iterator[Moment]:
    """The discriminator's step: all of some prompts' texts a pass, or an even piece of one prompt's."""
    prompts = max(1, discriminator.micro_batch // job.group)
    pieces = max(1, -(-job.group // discriminator.micro_batch))
    row = _discriminator_row(job, discriminator, prompts, prompts * -(-(job.group + 1) // pieces))
    rollouts = job.generation.rollouts if job.generation else 0
    many = rollouts > max(discriminator.micro_batch, job.group)
    states = discriminator_states(job, discriminator)
    yield from _training(DISCRIMINATOR, lasting, "discriminator", states, discriminator.shape, row, many)


def _training(
    phase: str,
    there: dict[str, float],
    who: str,
    states: States,
    shape: Shape,
    row: Row,
    many: bool,
    into_vision: bool = True,
    triton: bool = True,
) -> Iterator[Moment]:
    """A pass forward and back, and a step; `many` passes a step leave gradients lying while the next one runs."""
    activations = kept(shape, row, states.how, into_vision)
    lying = {f"{who} gradients": states.gradients if many else 0}
    embedding = states.embedding if shape.head or many else 0
    tile = _tile(row, shape, states.how, triton)
    copies = {"bfloat16 copies": states.copies}
    yield Moment(phase, "forward", there | lying | copies | {"activations": activations, "logits": tile})
    held = copies if not states.how.checkpointing else {}
    logits = tile + (embedding if shape.head else 0)
    yield Moment(phase, "backward begins", there | lying | held | {"activations": activations, "logits": logits})
    done = {f"{who} gradients": states.gradients}
    twice = embedding * (2 if many and shape.head else 1)
    yield Moment(phase, "backward ends", there | done | held | {"logits": twice})
    yield Moment(phase, "first layers", there | done | held | {"activations": one_layer(shape, row, states.how)})
    yield Moment(phase, "optimizer step", there | done | {"optimizer step": states.stepping})


def _tile(row: Row, shape: Shape, how: Arithmetic, triton: bool) -> float:
    """Buffers in which the tokens' probabilities are computed."""
    if not shape.head:
        return 0
    numbers = min(row.tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS)
    return numbers * (how.product + (0 if triton else 4 * WITHOUT_TRITON))


def _generation(job: Job, generation: Generation, there: dict[str, float], policy: States) -> Moment:
    """Rollouts: in transformers with a cache of all of them, or in what vLLM takes."""
    if generation.vllm is not None:
        return Moment(GENERATION, "vLLM", there | {"vLLM": _vllm(job, generation)})
    how = policy.how if job.stage != "warmup" else Arithmetic(job.weight_bytes, job.autocast, False)
    text, count = job.policy.text, generation.rollouts
    # Keys come out of a norm in float32 beside float32 weights, values out of a product.
    numbers = text.keys * text.layers * (how.stream + how.product)
    cache = count * (generation.prompt + generation.response) * numbers
    # While a layer's cache grows by a token its old one is still there.
    cache += cache / text.layers
    patches = count * job.policy.patches(job.pixels)
    first = momentary(job.policy, Row(count * generation.prompt, patches), how)
    words = 3 * count * job.policy.vocabulary * 4
    gathered = {}
    if job.launch.zero == 3 and job.launch.world_size > 1:
        gathered["exchange"] = there.get("exchange", 0) + job.policy.weights * how.weight_bytes
    extra = {"bfloat16 copies": policy.copies, "KV cache": cache, "activations": first, "logits": words}
    return Moment(GENERATION, "transformers", there | extra | gathered)


def _vllm(job: Job, generation: Generation) -> float:
    """The share that vLLM is given; no less than its bfloat16 weights and the cache of one longest rollout."""
    text = job.policy.text
    if not generation.vllm:
        return 0
    cache = 4 * text.keys * text.layers * (generation.prompt + generation.response)
    return max(generation.vllm * job.device.memory, (2 * job.policy.weights + cache) / generation.split)


def _trains_vision(job: Job) -> bool:
    """Whether the policy's vision tower is trained."""
    return job.adapters is None or job.adapters.vision


def _pictures(job: Job) -> float:
    """The patches of all rollouts of a generation batch: each has its own copy of its prompt's picture."""
    if job.generation is None or job.stage == "warmup":
        return 0
    return job.generation.rollouts * job.policy.patches(job.pixels) * job.policy.patch_values * 4


def _update_row(job: Job) -> Row:
    patches = job.policy.patches(job.pixels)
    if job.packed and job.micro_batch > 1:
        prompts = max(1, job.micro_batch // job.group)
        return packed_row(prompts, job.prompt, job.micro_batch, job.response, patches, job.policy)
    return Row(job.micro_batch * (job.prompt + job.response), job.micro_batch * patches)


def _discriminator_row(job: Job, discriminator: Discriminator, prompts: int, texts: int) -> Row:
    patches = discriminator.shape.patches(job.pixels) if discriminator.sees else 0
    prompt = job.prompt - (0 if discriminator.sees else job.policy.patches(job.pixels) // job.policy.merge**2)
    length = job.response // discriminator.parts + 1
    return packed_row(prompts, max(1, prompt), texts * discriminator.parts, length, patches, discriminator.shape)
