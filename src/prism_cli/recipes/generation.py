"""Backends of generation: what produces the policy's responses."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from prism_cli.recipes.section import Fraction, Section, type_if_absent


class TransformersGeneration(Section):
    """Generation by transformers: works everywhere, slowly."""

    type: Literal["transformers"]


class VLLMGeneration(Section):
    """Generation by vLLM, during training with the policy's current weights. Needs `pip install 'prism-cli[vllm]'`."""

    type: Literal["vllm"] = "vllm"
    mode: Literal["colocate", "server"] = "colocate"
    """`colocate`: inside the training processes, on their GPUs. `server`: a `trl vllm-serve` on separate GPUs (training
    only)."""
    memory: Fraction = 0.3
    """Share of each GPU's memory for vLLM's weights and cache, with `mode: colocate`."""
    sleep: bool = True
    """Free that memory for training between generations, with `mode: colocate`; no effect on a CPU."""
    tensor_parallel: PositiveInt = 1
    """Number of GPUs over which vLLM splits the model, with `mode: colocate`; must divide `launch.processes`."""
    max_model_tokens: PositiveInt | None = None
    """Maximum tokens of prompt and response together; null takes the sum of the stage's limits."""
    server: str | None = None
    """Base URL of the server, such as http://127.0.0.1:8000; for `mode: server`."""
    importance_correction: bool = True
    """Weight each token's gradient by the ratio of the trainer's probability to vLLM's, at most 3 (truncated importance
    sampling)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of vLLM's `LLM`, by vLLM's names."""

    @model_validator(mode="after")
    def _server_has_an_address(self):
        if (self.mode == "server") != (self.server is not None):
            raise ValueError("mode: server and `server: URL` go together")
        return self


Generation = Annotated[TransformersGeneration | VLLMGeneration, Field(discriminator="type"), type_if_absent("vllm")]
