"""An endpoint that two real processes ask: both say alike where it stands in the recipe and what to do."""

import pytest

from prism_cli.assembly.rewards import build_rewards
from prism_cli.errors import BudgetError
from prism_cli.recipes.identity import differences
from prism_cli.recipes.load import FLAGS
from prism_cli.runs.folder import Run, open_run
from prism_cli.runs.references import read_manifest
from tests.distributed.test_discriminator import pair
from tests.faulty_endpoint import FaultyEndpoint, answer
from tests.unit.test_rewards import recipe, row, said
from tests.unit.test_teacher_answers import ids, opened, section

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


def graded(folder, url):
    """What the LLM judge's cap says to a process."""
    judge = f"rewards.llm_judge={{endpoint: '{url}', model: m, store: {folder}/kept.sqlite, max_calls: 1}}"
    with pytest.raises(BudgetError) as caught, build_rewards(recipe(judge), folder) as rewards:
        rewards.score([said("a dog"), said("a fish")], [row("cat")] * 2, [1, 1])
    return str(caught.value), caught.value.advice(FLAGS)


def taught(folder, url):
    """What the teacher's cap says to a process."""
    run = Run(folder, read_manifest(folder))
    with pytest.raises(BudgetError) as caught, opened(section(run, url, max_calls=1), run) as teacher:
        teacher.answers(ids("abcd"))
    return str(caught.value), caught.value.advice(FLAGS)


@pytest.mark.parametrize(
    ("work", "place", "key"),
    [
        (graded, "rewards.llm_judge", "rewards.llm_judge.max_calls"),
        (taught, "teacher", "teacher.max_calls (--max-teacher-calls)"),
    ],
)
def test_every_process_names_the_section_and_the_key(tmp_path, work, place, key):
    run = open_run(tmp_path / "run", "rl", {}, "", differences)
    with FaultyEndpoint() as endpoint:
        endpoint.plan.default_factory = lambda: [answer("NO")]
        first, second = pair(work, run.folder, endpoint.url)
    assert first == second
    message, hint = first
    assert message.startswith(f"{place}: the budget of 1 calls")
    assert hint.startswith(f"raise {key} and run")
