"""The pages keep their word: links resolve, commands exist, named files are there, shipped values are the paper's."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prism_cli.cli.app import app
from prism_cli.recipes.load import load_recipe

ROOT = Path(__file__).parents[2]
GENERATED = {"docs/cli.md", "docs/recipes.md"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for folder in (".", "docs", "benchmarks") for path in (ROOT / folder).glob("*.md")
)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
WITH_DRY_RUN = {"sft", "align", "rl", "eval", "drift", "collect", "data curate", "run", "compare", "export"}
# These would ask an endpoint, load a model or read a file: their words are parsed, no more.
PARSED_ONLY = (
    "teacher check",
    "teacher log",
    "data check",
    "data show",
    "discriminator create",
    "discriminator warmup",
)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.M | re.S)


def commands(page):
    lines = [line for block in blocks(page, "console") for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ prism ")]


def anchors(text):
    """The anchors GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def own_pages():
    return [page for page in PAGES if page not in GENERATED]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that holds what the commands name: finished runs, a pipeline's step and data files."""
    monkeypatch.chdir(tmp_path)
    for run in ("runs/sft", "runs/align", "runs/rl", "runs/tiny/sft", "runs/tiny/align"):
        (tmp_path / run / "model").mkdir(parents=True)
        manifest = {
            "stage": Path(run).name,
            "id": Path(run).name,
            "status": "finished",
            "finished": "2026",
            "recipe": {},
        }
        (tmp_path / run / "run.json").write_text(json.dumps(manifest))
        parts = {"perception": {"tags": ["caption"], "weight": 0.5}, "reasoning": {"tags": ["answer"], "weight": 0.5}}
        settings = {"parts": parts, "answer": "answer", "instruction": None}
        (tmp_path / run / "model/response.json").write_text(json.dumps(settings))
    whole = {"stage": "run", "id": "tiny", "status": "finished", "finished": "2026", "recipe": {}}
    (tmp_path / "runs/tiny/run.json").write_text(json.dumps(whole))
    (tmp_path / "runs/eval").mkdir()
    evaluation = whole | {"stage": "eval", "id": "eval"}
    (tmp_path / "runs/eval/run.json").write_text(json.dumps(evaluation))
    (tmp_path / "data").mkdir()
    for name in ("sft", "align", "rl", "test"):
        (tmp_path / f"data/{name}.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / "runs/curate/data").mkdir(parents=True)
    (tmp_path / "runs/curate/run.json").write_text("{}")
    (tmp_path / "runs/curate/data/rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    return tmp_path


def run_without_work(command):
    """Runs a command that only reads; one that would train or serve is only checked."""
    words = shlex.split(command, comments=True)[1:]
    if " ".join(words[:2]) in PARSED_ONLY:
        words.append("--help")
    if WITH_DRY_RUN & {words[0], " ".join(words[:2])} and "--dry-run" not in words:
        words.append("--dry-run")
    if words[:2] == ["teacher", "serve"]:
        # The options are read before the port is refused, so nothing is served.
        words += ["--port", "-1"]
    return CliRunner().invoke(app, words)


# Links and names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_and_its_heading(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", own_pages())
def test_every_source_file_a_page_names_exists(page):
    names = re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|j2|css|js|md))`", read(page))
    places = (ROOT, ROOT / "src/prism_cli", ROOT / "tests", ROOT / "docs")
    # Files of a run, and names of files that should never be.
    elsewhere = {"README.md", "utils.py", "common.py", "base.py"}
    assert [name for name in names if name not in elsewhere and not any((p / name).is_file() for p in places)] == []


def test_the_table_of_rooms_names_every_room():
    package = ROOT / "src/prism_cli"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    named = set(re.findall(r"^\| `([\w./]+)` \|", read("docs/architecture.md"), re.M))
    assert rooms - named == set()


# Commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in own_pages() for command in commands(page)])
def test_a_command_of_a_page_is_accepted(page, command, workplace):
    result = run_without_work(command)
    if "teacher serve" in command:
        assert result.exit_code == 2
        assert "Invalid value for '--port'" in result.output
        return
    if "recipes check mine" in command or "prism run mine" in command:
        assert run_without_work("prism recipes copy tiny mine").exit_code == 0
        result = run_without_work(command)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_the_command_in_a_recipes_first_line_is_accepted(recipe, workplace):
    command = recipe.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    result = run_without_work(command)
    assert result.exit_code == 0, result.output


def test_a_command_that_does_not_exist_would_be_noticed(workplace):
    assert run_without_work("prism align tiny --teacher-url http://h/v1 --from runs/sft").exit_code == 2
    assert run_without_work("prism run tiny nothing.max_steps=3").exit_code == 2


@pytest.mark.parametrize("page", own_pages())
def test_every_make_target_of_a_page_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?\$? ?make ([a-z]+)[`\n]", read(page))) <= targets


def test_every_command_has_a_place_in_the_readme_or_the_changelog():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    names |= {group.typer_instance.info.name for group in app.registered_groups}
    text = read("README.md") + read("CHANGELOG.md")
    assert [name for name in names if not re.search(rf"(prism |`){name}\b", text)] == []


# Recipes and data -----------------------------------------------------------------------------------------------------


def test_recipes_in_the_pages_load(tmp_path):
    found = [block for page in own_pages() for block in blocks(page, "yaml")]
    assert found
    for block in found:
        stage = re.match(r"# (\w+)\.yaml\n", block)[1]
        (tmp_path / f"{stage}.yaml").write_text(block)
        load_recipe(stage, tmp_path / f"{stage}.yaml")


def test_the_one_part_grammar_of_the_method_page_takes_any_text(tmp_path):
    from prism_cli.responses import Grammar, Part

    (tmp_path / "sft.yaml").write_text(blocks("docs/method.md", "yaml")[0])
    response = load_recipe("sft", tmp_path / "sft.yaml").response
    grammar = Grammar({name: Part(part.tags, part.weight) for name, part in response.parts.items()}, response.answer)
    assert grammar.parse("forty-two").parts == {"whole": "forty-two"}
    assert grammar.instruction() is None


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("sft", {"epochs": 1, "batch_size": 2, "max_tokens": 8192, "max_steps": None}),
        ("align", {"max_steps": 500, "prompts_per_step": 4, "rollouts": 16, "max_response_tokens": 6144, "kl": 0}),
        ("rl", {"max_steps": 1500, "prompts_per_step": 32, "rollouts": 16, "max_response_tokens": 8192, "kl": 0}),
    ],
)
def test_the_4b_recipes_hold_the_papers_values(stage, values):
    recipe = load_recipe(stage, "qwen3_vl_4b")
    assert {key: getattr(recipe, key) for key in values} == values
    assert recipe.optimizer.learning_rate == (1e-5 if stage == "sft" else 1e-6)


def test_the_4b_align_recipe_can_ask_for_every_prompt_it_needs():
    recipe = load_recipe("align", "qwen3_vl_4b")
    warmup = recipe.discriminator.warmup
    needed = recipe.max_steps * recipe.prompts_per_step + warmup.pairs + warmup.held_out
    assert needed <= recipe.teacher.max_calls


def test_the_readme_s_row_is_read_as_it_says(tmp_path):
    from PIL import Image

    from prism_cli.data.load import load_rows

    (row,) = blocks("README.md", "json")
    (tmp_path / "charts").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / json.loads(row)["image"])
    (tmp_path / "rows.jsonl").write_text(row)
    loaded = load_rows(str(tmp_path / "rows.jsonl")).rows[0]
    assert loaded["prompt"] == [{"role": "user", "content": "How many bars are taller than 10?"}]
    assert (len(loaded["images"]), loaded["answers"]) == (1, ["3"])


# Metrics --------------------------------------------------------------------------------------------------------------


def test_every_metric_of_the_discriminator_is_explained():
    from prism_cli.discriminator.losses import PairStatistics

    ones = PairStatistics(*([[1.0]] * len(PairStatistics._fields)))
    page = read("docs/method.md")
    for name in ones.metrics(["PART"]):
        assert name in page or name.removeprefix("discriminator/") in page
