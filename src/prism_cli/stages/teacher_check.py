"""`prism teacher check`: whether a teacher is there, sees, keeps the form, and what a call takes."""

from contextlib import ExitStack
from typing import Any, NamedTuple

from prism_cli.assembly.asking import asking
from prism_cli.assembly.checks import check_teacher
from prism_cli.assembly.endpoint import budget_of, named_model, price_of, shown_endpoint, store_path, url_of
from prism_cli.assembly.probe import Probed, probed
from prism_cli.assembly.response import response_settings
from prism_cli.endpoint.client import served_model
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import RecipeError
from prism_cli.recipes.identity import run_folder
from prism_cli.recipes.teachers import EmbeddedTeacher, OpenAITeacher


class Checkup(NamedTuple):
    """What was found.

    Attributes:
        endpoint: Whom was asked, as it may be shown.
        model: The model that answered.
        modality: `image`, or `text`: then pictures are told in words.
        found: How it did on the probes.
        usd: Dollars a call, or None where price or tokens are not known.
    """

    endpoint: str
    model: str
    modality: str
    found: Probed
    usd: float | None

    @property
    def passed(self) -> bool:
        """Whether it can teach: it answers, and right, by what it sees or by what it is told."""
        return self.found.sees

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {**self.found._asdict(), "failed": list(self.found.failed), "answers": list(self.found.answers)}
        plain = {"endpoint": self.endpoint, "model": self.model, "modality": self.modality, "usd_a_call": self.usd}
        return {"passed": self.passed, **plain, **found}


def run(stage: str, recipe: Any) -> Checkup:
    """Asks the teacher of a recipe about a few pictures whose right answers are known.

    Raises:
        RecipeError: there is no teacher to ask.
        TeacherError: it can't be reached, refuses the key, or serves none or several models and none is named.
        BudgetError: a cap was reached.
    """
    section = recipe.teacher
    if not isinstance(section, OpenAITeacher | EmbeddedTeacher):
        raise RecipeError("there is no teacher to check", "give --teacher-endpoint URL, or a recipe with one")
    settings = response_settings(recipe)
    check_teacher(section, stage, settings.grammar)
    how = asking(section, *settings)
    with ExitStack() as stack:
        url = url_of(section, how.grammar, stack)
        key = section.api_key_env if isinstance(section, OpenAITeacher) else ""
        model = served_model(url, key, named_model(section))
        store = AnswerStore(store_path(section, run_folder(stage, recipe)))
        stack.callback(store.close)
        found = probed(section, how, url, model, store, budget_of(section), recipe.data, anew=True)
    price, read, written = price_of(section), found.prompt_tokens, found.completion_tokens
    usd = None
    if price is not None and read is not None and written is not None:
        usd = price.usd(round(read), round(written))
    return Checkup(shown_endpoint(section), model, section.modality, found, usd)
