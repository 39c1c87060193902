"""`prism teacher check`: a teacher probed on a few pictures: does it see, keep the form, what does a call take."""

from contextlib import ExitStack
from typing import Any, NamedTuple

from prism_cli.assembly.checks import check_teacher
from prism_cli.assembly.endpoint import in_section, open_endpoint
from prism_cli.assembly.response import response_settings
from prism_cli.assembly.teacher import SECTION, probe_pairs, prompting_of, resolve_teacher, served_endpoint, verified
from prism_cli.endpoint.client import served_model
from prism_cli.errors import RecipeError, TeacherError
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.stages import AlignRecipe, CollectRecipe, EvalRecipe, SFTRecipe
from prism_cli.teacher.probe import ProbeResult, probe
from prism_cli.teacher.teacher import LiveTeacher


class Checkup(NamedTuple):
    """The outcome of a check.

    Attributes:
        endpoint: The base URL that was asked.
        model: The model that answered.
        modality: `image`, or `text`: then pictures are put as captions.
        result: Its answers to the probes.
        usd: Dollars a call, or None where price or tokens are not known.
    """

    endpoint: str
    model: str
    modality: str
    result: ProbeResult
    usd: float | None

    @property
    def passed(self) -> bool:
        """Whether it can teach: it answers, and right, by pictures or by captions."""
        return self.result.sees

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        probes = {**self.result._asdict(), "failed": list(self.result.failed), "answers": list(self.result.answers)}
        plain = {"endpoint": self.endpoint, "model": self.model, "modality": self.modality, "usd_a_call": self.usd}
        return {"passed": self.passed, **plain, **probes}


def run(stage: str, recipe: SFTRecipe | AlignRecipe | EvalRecipe | CollectRecipe) -> Checkup:
    """Asks the teacher of a recipe about a few pictures whose right answers are known.

    Raises:
        RecipeError: there is no teacher to ask.
        TeacherError: it can't be reached, refuses the key, or serves none or several models and none is named.
        BudgetError: a cap was reached.
    """
    section = recipe.teacher
    teacher = None if section is None else resolve_teacher(section)
    if section is None or not isinstance(teacher, LiveTeacher):
        raise RecipeError("there is no teacher to check", "give --teacher-endpoint URL, or a recipe with one")
    settings = response_settings(recipe)
    check_teacher(section, stage, settings.grammar)
    prompting = prompting_of(teacher, settings)
    with in_section(SECTION, TeacherError), ExitStack() as stack:
        endpoint = served_endpoint(teacher, prompting.grammar, stack)
        # Asked for whatever is kept: the check is of what answers now.
        endpoint = endpoint._replace(model=served_model(endpoint))
        opened = stack.enter_context(open_endpoint(endpoint, SECTION, run_folder(stage, recipe), usage=None))
        client = opened.client(attempts=1)
        result = probe(client, prompting, probe_pairs(teacher, recipe.data), verified, anew=True)
    price, read, written = endpoint.price, result.prompt_tokens, result.completion_tokens
    usd = None
    if price is not None and teacher.serve is None and read is not None and written is not None:
        usd = price.usd(round(read), round(written))
    modality = "image" if teacher.sees else "text"
    return Checkup(teacher.endpoint.url or "", opened.endpoint.served_name, modality, result, usd)
