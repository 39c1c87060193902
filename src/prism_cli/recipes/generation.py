"""What generates the policy's responses."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from prism_cli.recipes.section import Fraction, Section


class TransformersEngine(Section):
    """transformers generates: works everywhere, slowly."""

    engine: Literal["transformers"]
    """It has no further settings."""


class VLLMEngine(Section):
    """vLLM generates; while training, with the policy's weights of that step."""

    engine: Literal["vllm"]
    """Needs `pip install 'prism-cli[vllm]'`."""
    mode: Literal["colocate", "server"] = "colocate"
    """`colocate`: in the training processes, on their GPUs. `server`: a `trl vllm-serve` on GPUs of its own (training
    only)."""
    memory: Fraction = 0.3
    """Share of a GPU's memory that vLLM takes for weights and cache, colocated."""
    sleep: bool = True
    """Give that memory to training between generations, colocated; has no effect on CPU."""
    tensor_parallel: PositiveInt = 1
    """GPUs over which vLLM splits the model, colocated: a divisor of `launch.processes`."""
    max_model_tokens: PositiveInt | None = None
    """Longest prompt and response together; null takes the stage's own limits."""
    server: str | None = None
    """Base URL of the server, such as http://127.0.0.1:8000; for `mode: server`."""
    importance_correction: bool = True
    """Weigh each token's gradient by how much likelier the trainer finds it than vLLM did, 3 times at most (truncated
    importance sampling)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of vLLM's `LLM`, by their own names."""

    @model_validator(mode="after")
    def _server_has_an_address(self):
        if (self.mode == "server") != (self.server is not None):
            raise ValueError("mode: server and `server: URL` go together")
        return self


Generation = Annotated[TransformersEngine | VLLMEngine, Field(discriminator="engine")]
