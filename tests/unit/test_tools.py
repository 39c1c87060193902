"""The counting scripts in tools/, on made-up sources."""

import importlib.util
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe_questions, files_to_open = tool("recipe_questions"), tool("files_to_open")

QUESTIONS = [
    "isinstance(recipe.teacher, OpenAITeacher)",
    "isinstance(self._recipe, Anything)",
    "isinstance(something, OpenAITeacher | None)",
    "getattr(section, 'image', None)",
    "hasattr(align_recipe, 'teacher')",
    "type(resolved) is dict",
    "recipe.discriminator.type == 'moe'",
    "'moe' == discriminator.type",
    "given.type != 'world'",
]
OTHERS = [
    "isinstance(value, str)",
    "isinstance(recipe, Mapping)",
    "getattr(model, 'section', None)",
    "device.type == 'cpu'",
    "recipe.max_steps == 3",
    "recipe.teacher",
]


def kinds(expression, path="assembly/x.py"):
    source = f"""
from prism_cli.recipes.teachers import OpenAITeacher

def f(given: "OpenAITeacher | None", recipe: AlignRecipe):
    discriminator = recipe.discriminator
    return {expression}
"""
    return [place.kind for place in recipe_questions.places(path, source)]


@pytest.mark.parametrize("expression", QUESTIONS)
def test_a_question_put_to_a_recipe_counts_once(expression):
    assert kinds(expression) == ["question"]


@pytest.mark.parametrize("expression", OTHERS)
def test_a_question_put_to_anything_else_does_not_count(expression):
    assert kinds(expression) == []


SOURCE = """
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from prism_cli.recipes.sections import DataSection

def f(recipe: Any, section: "Any | None", model: Any, step: int, resolved: dict[str, Any] = {}):
    match section.data:
        case None:
            pass
    assert recipe.path, "check refuses data without a path"
    assert step > 0, "steps count from 1"
    return cast("Policy", model)
"""


def test_each_kind_of_place_is_told_by_its_line():
    lines = [(place.kind, place.line) for place in recipe_questions.places("teacher/x.py", SOURCE)]
    assert lines == [
        ("import", 5),
        ("untyped", 7),
        ("untyped", 7),
        ("question", 8),
        ("assert", 11),
        ("cast", 13),
    ]


def test_assembly_may_import_recipes_and_ask_twenty_questions_and_recipes_may_ask_any():
    def broken(path, count):
        place = recipe_questions.Place("question", path, 1, "")
        return len(recipe_questions.over_limits([place] * count))

    assert "import" not in [place.kind for place in recipe_questions.places("assembly/x.py", SOURCE)]
    assert [broken("assembly/x.py", count) for count in (20, 21)] == [0, 21]
    assert (broken("stages/sft.py", 1), broken("models.py", 1), broken("recipes/load.py", 99)) == (1, 1, 0)


def test_files_behind_a_stage_are_those_of_two_rooms_imported_anywhere(tmp_path):
    sources = {
        "stages/sft.py": "from prism_cli.assembly import data\nimport prism_cli.trainers.sft",
        "stages/rl.py": "",
        "assembly/data.py": "def f():\n    from prism_cli.assembly.response import grammar_of",
        "assembly/response.py": "from prism_cli.assembly.data import f",
        "trainers/sft.py": "from prism_cli.stages import rl",
    }
    for name, source in sources.items():
        (tmp_path / "prism_cli" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "prism_cli" / name).write_text(source)
    files = files_to_open.reachable(files_to_open.import_graph(tmp_path), "prism_cli.stages.sft")
    assert files == {"prism_cli.stages.sft", "prism_cli.assembly.data", "prism_cli.assembly.response"}
