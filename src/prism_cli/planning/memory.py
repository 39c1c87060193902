"""Memory a device, moment by moment: what lies there and what a pass adds, in bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from prism_cli.planning.activations import Arithmetic, Row, kept, momentary, one_layer, packed_row
from prism_cli.planning.job import GB, Job
from prism_cli.planning.shapes import Shape
from prism_cli.planning.states import States, judge_states, policy_states

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
    "judge weights",
    "judge gradients",
    "judge optimizer",
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
GENERATION, WARM_UP, JUDGE, UPDATE = "generation", "warm-up", "judge", "update"


@dataclass
class Moment:
    """One moment of a phase.

    Attributes:
        phase: generation, warm-up, judge or update.
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
    found = list(_moments(job))
    if job.device.accelerator:
        for moment in found:
            free = moment.parts.get("vLLM", 0)
            moment.parts["CUDA and holes"] = CONTEXT + HOLES * (moment.total - free)
    return [Moment(m.phase, m.name, {name: m.parts[name] for name in COMPONENTS if m.parts.get(name)}) for m in found]


def peaks(job: Job) -> dict[str, Moment]:
    """Phase → its largest moment."""
    found: dict[str, Moment] = {}
    for moment in moments(job):
        if moment.phase not in found or moment.total > found[moment.phase].total:
            found[moment.phase] = moment
    return found


def peak(job: Job) -> float:
    """Bytes on a device at the worst moment."""
    return max(moment.total for moment in moments(job))


def host_bytes(job: Job) -> float:
    """Main memory that offloaded states take, a process."""
    trained = [policy_states(job)] if job.stage != "warmup" else []
    return sum(states.host for states in [*trained, *([judge_states(job)] if job.judge else [])])


def _moments(job: Job) -> Iterator[Moment]:
    policy = policy_states(job)
    judge = judge_states(job) if job.judge else None
    if job.stage == "warmup":
        alone: dict[str, float] = {"policy weights": job.policy.weights * job.weight_bytes}
    else:
        alone = {"policy weights": policy.weights, "policy optimizer": policy.optimizer, "exchange": policy.buffers}
        if job.reference:
            alone["reference policy"] = job.policy.weights * job.weight_bytes
    if judge and job.judge and job.judge.warms_up:
        # The policy is there, its optimiser is not yet.
        before = {"policy weights": alone["policy weights"], "judge weights": judge.weights}
        before |= {"judge optimizer": judge.optimizer, "exchange": judge.buffers}
        yield from _training(WARM_UP, before, "judge", judge, job.judge.shape, _pairs_row(job), many=True)
    if job.stage == "warmup":
        if job.generation:
            yield _generation(job, alone, policy)
        return
    kept_always = dict(alone)
    if judge:
        kept_always |= {"judge weights": judge.weights, "judge optimizer": judge.optimizer}
        kept_always["exchange"] += judge.buffers
    pictures = _pictures(job)
    vllm = _vllm(job)
    if job.generation:
        yield _generation(job, kept_always, policy)
    if job.generation and not job.generation.sleeps:
        kept_always["vLLM"] = vllm
    if judge and job.judge:
        during = kept_always | {"pictures": pictures}
        rows = job.generation.rollouts if job.generation else 0
        many = rows > max(job.judge.micro_batch, job.group)
        yield from _training(JUDGE, during, "judge", judge, job.judge.shape, _game_row(job), many)
    during = kept_always | {"pictures": pictures}
    row = _update_row(job)
    yield from _training(
        UPDATE, during, "policy", policy, job.policy, row, job.passes > 1, _eyes(job), job.device.accelerator
    )


def _training(
    phase: str,
    there: dict[str, float],
    who: str,
    states: States,
    shape: Shape,
    row: Row,
    many: bool,
    eyes: bool = True,
    triton: bool = True,
) -> Iterator[Moment]:
    """A pass forward and back, and a step; `many` passes a step leave gradients lying while the next one runs."""
    activations = kept(shape, row, states.how, eyes)
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
    """What the tokens' probabilities are computed in."""
    if not shape.head:
        return 0
    numbers = min(row.tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS)
    return numbers * (how.product + (0 if triton else 4 * WITHOUT_TRITON))


def _generation(job: Job, there: dict[str, float], policy: States) -> Moment:
    """Rollouts: in transformers with a cache of all of them, or in what vLLM takes."""
    asked = job.generation
    assert asked is not None, "called where something is generated"
    if asked.vllm is not None:
        return Moment(GENERATION, "vLLM", there | {"vLLM": _vllm(job)})
    how = policy.how if job.stage != "warmup" else Arithmetic(job.weight_bytes, job.autocast, False)
    text, count = job.policy.text, asked.rollouts
    # Keys come out of a norm in float32 beside float32 weights, values out of a product.
    numbers = text.keys * text.layers * (how.stream + how.product)
    cache = count * (asked.prompt + asked.response) * numbers
    # While a layer's cache grows by a token its old one is still there.
    cache += cache / text.layers
    patches = count * job.policy.patches(job.pixels)
    first = momentary(job.policy, Row(count * asked.prompt, patches), how)
    words = 3 * count * job.policy.vocabulary * 4
    gathered = {}
    if job.launch.zero == 3 and job.launch.world > 1:
        gathered["exchange"] = there.get("exchange", 0) + job.policy.weights * how.weight_bytes
    extra = {"bfloat16 copies": policy.copies, "KV cache": cache, "activations": first, "logits": words}
    return Moment(GENERATION, "transformers", there | extra | gathered)


def _vllm(job: Job) -> float:
    """The share that vLLM is given; no less than its bfloat16 weights and the cache of one longest rollout."""
    asked, text = job.generation, job.policy.text
    if asked is None or not asked.vllm:
        return 0
    cache = 4 * text.keys * text.layers * (asked.prompt + asked.response)
    return max(asked.vllm * job.device.memory, (2 * job.policy.weights + cache) / asked.split)


def _eyes(job: Job) -> bool:
    """Whether the policy's eyes are trained."""
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


def _game_row(job: Job) -> Row:
    """The judge's row in the game: whole prompts' rollouts and teacher answers, or an even piece of one prompt's."""
    judge = job.judge
    assert judge is not None, "called where there is a judge"
    prompts = max(1, judge.micro_batch // job.group)
    pieces = max(1, -(-job.group // judge.micro_batch))
    texts = prompts * -(-(job.group + 1) // pieces)
    return _judged(job, prompts, texts)


def _pairs_row(job: Job) -> Row:
    """The judge's row in the warm-up: each pair behind a prompt of its own."""
    assert job.judge is not None, "called where there is a judge"
    return _judged(job, job.judge.micro_batch, 2 * job.judge.micro_batch)


def _judged(job: Job, prompts: int, texts: int) -> Row:
    judge = job.judge
    assert judge is not None, "called where there is a judge"
    patches = judge.shape.patches(job.pixels) if judge.sees else 0
    asked = job.prompt - (0 if judge.sees else job.policy.patches(job.pixels) // job.policy.merge**2)
    length = job.response // judge.parts + 1
    return packed_row(prompts, max(1, asked), texts * judge.parts, length, patches, judge.shape)
