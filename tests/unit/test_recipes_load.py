"""Loading recipes: where values come from, which win, and what is said when they are wrong."""

import pytest

from prism_cli.cli.options import given
from prism_cli.errors import RecipeError
from prism_cli.recipes.alignment import DenseDiscriminator, MoEDiscriminator
from prism_cli.recipes.launch import LaunchSection
from prism_cli.recipes.load import load_recipe, load_step
from prism_cli.recipes.pipelines import PipelineStep
from prism_cli.recipes.sections import FileData
from prism_cli.recipes.teachers import DatasetTeacher, EmbeddedTeacher, OpenAITeacher
from prism_cli.recipes.training import GSPO


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text, name="x.yaml"):
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def problems(stage, text, overrides=(), options=None):
    with pytest.raises(RecipeError) as caught:
        load_recipe(stage, write(text), overrides, options)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


# Where a recipe comes from --------------------------------------------------------------------------------------------


def test_without_a_source_the_defaults_are_the_papers():
    recipe = load_recipe("align")
    assert (recipe.max_steps, recipe.prompts_per_step, recipe.rollouts) == (500, 4, 16)
    assert recipe.optimizer.learning_rate == 1e-6


def test_without_a_source_the_stages_file_in_the_current_folder_is_taken():
    write("seed: 7", "rl.yaml")
    assert load_recipe("rl").seed == 7
    assert load_recipe("sft").seed == 0


def test_a_folder_stands_for_the_stages_file_in_it(folder):
    (folder / "mine").mkdir()
    write("seed: 8", "mine/sft.yaml")
    assert load_recipe("sft", "mine").seed == 8


def test_a_shipped_name_is_found_from_any_folder():
    assert load_recipe("sft", "tiny") == load_recipe("sft", "tiny/sft")
    assert load_recipe("run", "tiny").name == "tiny"


def test_a_local_file_wins_over_a_shipped_name():
    write("seed: 9", "tiny")
    assert load_recipe("sft", "tiny").seed == 9


def test_an_unknown_recipe_is_answered_with_the_shipped_ones():
    with pytest.raises(RecipeError, match="no recipe 'tyni'") as caught:
        load_recipe("align", "tyni")
    assert "tiny" in caught.value.hint


def test_a_pipeline_has_no_defaults():
    with pytest.raises(RecipeError, match=r"no pipeline\.yaml here"):
        load_recipe("run")


def test_an_empty_file_is_all_defaults():
    assert load_recipe("rl", write("# nothing\n")) == load_recipe("rl")


# Values ---------------------------------------------------------------------------------------------------------------


def test_numbers_follow_yaml_1_2():
    recipe = load_recipe("align", write("optimizer: {learning_rate: 1e-6}\nmodel: {path: no}"))
    assert recipe.optimizer.learning_rate == 1e-6
    assert recipe.model.path == "no"


def test_options_win_over_overrides_and_overrides_over_the_file():
    file = write("seed: 1\nmax_steps: 1\nrollouts: 4")
    recipe = load_recipe("rl", file, ["seed=2", "max_steps=2"], {"seed": 3})
    assert (recipe.seed, recipe.max_steps, recipe.rollouts) == (3, 2, 4)


def test_the_last_of_two_overrides_of_a_key_wins():
    assert load_recipe("rl", None, ["seed=2", "seed=5"]).seed == 5


def test_an_override_keeps_the_rest_of_its_section():
    recipe = load_recipe("rl", write("optimizer: {weight_decay: 0.1}"), ["optimizer.beta2=0.9"])
    assert (recipe.optimizer.weight_decay, recipe.optimizer.beta2) == (0.1, 0.9)


def test_an_override_inside_the_default_parts_keeps_the_other_part():
    recipe = load_recipe("align", None, ["response.parts.perception.weight=0.25"])
    assert recipe.response.parts["perception"].tags == ("caption",)
    assert recipe.response.parts["perception"].weight == 0.25
    assert recipe.response.parts["reasoning"].weight == 0.5


def test_an_override_may_replace_a_whole_section():
    recipe = load_recipe("align", write("teacher: {endpoint: http://a}"), ["teacher={type: embedded}"])
    assert recipe.teacher == EmbeddedTeacher(type="embedded")


def test_an_override_of_one_aliased_section_leaves_the_other():
    recipe = load_recipe("sft", write("data: &rows {path: a}\neval_data: *rows"), ["eval_data.path=b"])
    assert (recipe.data.path, recipe.eval_data.path) == ("a", "b")


def test_values_for_the_data_that_an_option_names_are_kept():
    data = load_recipe("sft", None, ["data.format=verl", "data.path=other"], given(model="m", data="rows.parquet")).data
    assert data == FileData(path="rows.parquet", format="verl")


def test_a_later_word_on_where_to_start_takes_the_files_away(folder):
    assert load_recipe("rl", write("model: {type: tiny}"), ["from=runs/a"]).model is None
    write("from: runs/a", "rl.yaml")
    step = PipelineStep(stage="rl", recipe="rl.yaml", set={"model.type": "tiny"})
    assert load_step(step, folder).from_ is None


def test_an_option_for_where_to_start_takes_the_files_away():
    assert load_recipe("rl", write("model: {type: tiny}"), options={"from": "runs/a"}).model is None
    start = {"type": "pretrained", "path": "m"}
    assert load_recipe("rl", write("from: runs/a"), options={"model": start}).from_ is None


def test_two_options_for_where_to_start_are_refused():
    lines = problems("rl", "", options={"from": "runs/a", "model": {"type": "pretrained", "path": "m"}})
    assert lines == ["x.yaml: `model` and `from` both say where to start; keep one"]


# Unions ---------------------------------------------------------------------------------------------------------------


def test_the_usual_type_may_be_left_out():
    recipe = load_recipe(
        "align", write("teacher: {endpoint: http://a}\ndata: {path: a.jsonl}\ndiscriminator: {top_k: 1}")
    )
    assert recipe.teacher == OpenAITeacher(endpoint="http://a")
    assert recipe.data == FileData(path="a.jsonl")
    assert recipe.discriminator == MoEDiscriminator(top_k=1)
    assert load_recipe("rl", write("algorithm: {clip_low: 0.1}")).algorithm.type == "grpo"


def test_changing_the_type_keeps_only_what_both_inherit():
    file = write("teacher: {endpoint: http://a, model: m}\ndiscriminator: {experts: 8, dropout: 0.2}")
    recipe = load_recipe("align", file, ["teacher.type=dataset", "discriminator.type=dense"])
    assert recipe.teacher == DatasetTeacher(type="dataset")
    assert recipe.discriminator == DenseDiscriminator(type="dense", dropout=0.2)


def test_a_world_s_keys_are_no_keys_of_a_file():
    file = write("data: {type: world, size: 3, split: tune}")
    assert load_recipe("sft", file, ["data.type=file", "data.path=a"]).data == FileData(path="a")


def test_another_algorithm_comes_with_its_own_clips():
    file = write("algorithm: {type: grpo, clip_low: 0.2, clip_high: 0.3}")
    assert load_recipe("rl", file, ["algorithm.type=gspo"]).algorithm == GSPO(type="gspo")
    assert load_recipe("rl", file, ["algorithm.type=grpo"]).algorithm.clip_high == 0.3


def test_a_mapping_replaces_the_section_and_a_dotted_key_one_value():
    file = write("launch: {processes: 8, zero: 3}")
    assert load_recipe("sft", file, ["launch={zero: 2}"]).launch == LaunchSection(zero=2)
    assert load_recipe("sft", file, ["launch.zero=2"]).launch == LaunchSection(processes=8, zero=2)


@pytest.mark.parametrize("order", [1, -1])
def test_a_dotted_key_goes_into_the_mapping_of_its_layer(order):
    overrides = ["teacher={type: embedded}", "teacher.variant=text_only"][::order]
    teacher = load_recipe("align", write("teacher: {endpoint: http://a}"), overrides).teacher
    assert teacher == EmbeddedTeacher(type="embedded", variant="text_only")


def test_the_backend_of_generation_is_vllm_unless_its_type_is_another():
    file = write("generation: {memory: 0.5}")
    assert load_recipe("rl", file, ["generation.memory=0.4"]).generation.memory == 0.4
    assert load_recipe("rl", file, ["generation.type=transformers"]).generation.type == "transformers"
    assert problems("rl", "generation: {type: vllm, memroy: 0.5}") == [
        "x.yaml:1: generation.memroy: no such key (did you mean memory?)"
    ]
    assert load_recipe("rl", write("seed: 1"), ["generation.memory=0.5"]).generation.memory == 0.5
    assert problems("rl", "generation: {type: sglang}") == [
        "x.yaml:1: generation.type: expected transformers or vllm, found text 'sglang'"
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_type_and_key_may_be_overridden_in_any_order(order):
    overrides = ["teacher.type=openai", "teacher.endpoint=http://b"][::order]
    recipe = load_recipe("align", write("teacher: {type: embedded, variant: text_only}"), overrides)
    assert recipe.teacher == OpenAITeacher(endpoint="http://b")


def test_an_override_of_another_types_key_is_refused_with_the_type_that_has_it():
    lines = problems("align", "teacher: {type: embedded}", ["teacher.endpoint=http://b"])
    assert lines == [
        "override 'teacher.endpoint=http://…': teacher.endpoint: "
        "a section of type embedded has no such key (type openai has)"
    ]


def test_the_teacher_options_make_the_teacher_an_endpoint():
    file = write("teacher: {type: embedded, variant: text_only}")
    recipe = load_recipe("align", file, options={"teacher.endpoint": "http://b", "teacher.model": "m"})
    assert recipe.teacher == OpenAITeacher(endpoint="http://b", model="m")
    assert load_recipe("sft", options={"teacher.endpoint": "http://b"}).teacher == OpenAITeacher(endpoint="http://b")


def test_the_teacher_options_keep_an_endpoint_teachers_other_values():
    recipe = load_recipe("align", write("teacher: {max_calls: 5}"), options={"teacher.endpoint": "http://b"})
    assert recipe.teacher == OpenAITeacher(endpoint="http://b", max_calls=5)


def test_values_for_the_endpoint_survive_the_option_that_makes_the_teacher_one():
    file = write("teacher: {type: embedded, variant: text_only}")
    recipe = load_recipe("align", file, ["teacher.temperature=0.5"], {"teacher.endpoint": "http://b"})
    assert recipe.teacher == OpenAITeacher(endpoint="http://b", temperature=0.5)


def test_a_cap_is_no_reason_to_take_another_teacher():
    lines = problems("align", "teacher: {type: embedded}", [], {"teacher.max_calls": 5})
    assert lines == [
        "--max-teacher-calls: teacher.max_calls: a section of type embedded has no such key (type openai has)"
    ]
    endpoint = {"teacher.endpoint": "http://b", "teacher.max_calls": 5}
    assert load_recipe("align", write("teacher: {type: embedded}"), [], endpoint).teacher.max_calls == 5


def test_a_cap_on_dollars_needs_a_price():
    lines = problems("align", "teacher: {endpoint: http://b}", [], {"teacher.max_usd": 5.0})
    assert "max_usd needs a price" in lines[0]


# What is wrong --------------------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_in_the_order_of_the_lines():
    text = """\
max_step: 3
teacher:
  max_concurency: 4
  concurency: 2
optimizer: {learning_rate: "1e-6", weight_decay: -1}
discriminator: {type: dens}
advantage: 3
data:
  type: world
  size: 2.5
  split: trin
seed: abc
trainer: {learning_rate: 3}
"""
    assert problems("align", text, ["kl=[", "optimizer.betas=0.3"], {"max_steps": 0}) == [
        "override 'kl=[': not a YAML value: while parsing a flow node, expected the node content, "
        "but found '<stream end>'",
        "x.yaml:1: max_step: no such key (did you mean max_steps?)",
        "x.yaml:3: teacher.max_concurency: no such key (did you mean concurrency?)",
        "x.yaml:4: teacher.concurency: no such key (did you mean concurrency?)",
        "x.yaml:5: optimizer.learning_rate: expected a number, found text '1e-6' (take the quotes off)",
        "x.yaml:5: optimizer.weight_decay: must be ≥ 0, found the number -1",
        "x.yaml:6: discriminator.type: expected moe or dense or text_only, found text 'dens'",
        "x.yaml:7: advantage: expected a section (key: value lines), found the number 3",
        "x.yaml:10: data.size: expected a whole number, found the number 2.5",
        "x.yaml:11: data.split: expected 'train', 'tune' or 'test', found text 'trin'",
        "x.yaml:12: seed: expected a whole number, found text 'abc'",
        "x.yaml:13: trainer.learning_rate: the stage sets this; use the recipe's own optimizer.learning_rate",
        "override 'optimizer.betas=0.3': optimizer.betas: no such key (did you mean beta2?)",
        "--max-steps: max_steps: must be > 0, found the number 0",
    ]


def test_a_missing_key_is_named_at_the_line_of_its_section():
    assert problems("sft", "seed: 1\ndata:\n  type: world\n") == ["x.yaml:2: data.size: missing"]


@pytest.mark.parametrize("value", [".inf", ".nan", "true", "null", "'3'", "[1]"])
def test_what_is_no_finite_number_is_refused_where_one_belongs(value):
    (line,) = problems("align", f"kl: {value}")
    assert line.startswith("x.yaml:1: kl: expected a")


def test_keys_that_stand_twice_are_refused_with_both_lines():
    assert problems("rl", "seed: 1\noptimizer:\n  beta2: 0.9\n  beta2: 0.8\nseed: 2") == [
        "x.yaml:4: optimizer.beta2: stands here and in line 3",
        "x.yaml:5: seed: stands here and in line 1",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: [1\nkl: 2", "x.yaml:2: while parsing a flow sequence"),
        ("a: b: c", "x.yaml:1: mapping values are not allowed"),
        ("seed: 1\n\tkl: 1", "x.yaml:2: "),
        ("- 1", "x.yaml:1: expected `key: value` lines, found list"),
        ("seed: !!python/name:os.system x", "x.yaml:1: "),
        ("seed: *nowhere", "x.yaml:1: found undefined alias"),
        ("seed: 1\n---\nseed: 2", "x.yaml:2: "),
        ("seed: \x00", "x.yaml:1: "),
    ],
)
def test_what_is_not_a_recipe_in_yaml_is_refused_with_its_line(text, expected):
    (line,) = problems("rl", text)
    assert line.startswith(expected)


def test_a_file_that_is_not_text_is_refused(folder):
    (folder / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"x\.yaml: not UTF-8"):
        load_recipe("rl", "x.yaml")


@pytest.mark.parametrize("override", ["=3", "kl", "a..b=1", "a b=1"])
def test_what_is_no_override_is_refused(override):
    assert problems("rl", "", [override]) == [f"override {override!r}: expected key.path=value"]


def test_an_override_below_a_plain_value_is_refused():
    assert problems("rl", "seed: 1", ["seed.a=1"]) == [
        "override 'seed.a=1': seed: expected a whole number, found a section"
    ]


def test_a_grammar_that_contradicts_itself_is_refused():
    (line,) = problems("sft", "response:\n  parts: {a: {tags: [x]}}")
    assert line == "x.yaml:1: response: answer tag 'answer' stands in no part (tags: ['x'])"


# Pipelines ------------------------------------------------------------------------------------------------------------

PIPELINE = """\
name: p
steps:
  - {stage: sft, recipe: sft.yaml, set: {max_steps: 2, seed: 4}}
  - {stage: align, recipe: align.yaml, id: tune}
"""


def test_a_steps_value_is_set_by_the_steps_name():
    recipe = load_recipe("run", write(PIPELINE), ["sft.max_steps=3", "tune.teacher.type=dataset", "name=q"])
    assert recipe.name == "q"
    assert recipe.steps[0].set == {"max_steps": 3, "seed": 4}
    assert recipe.steps[1].set == {"teacher.type": "dataset"}


def test_a_name_that_is_no_step_is_an_unknown_key():
    assert problems("run", PIPELINE, ["align.seed=1"]) == ["override 'align.seed=1': align: no such key"]


def test_a_step_is_its_recipe_with_set_and_the_pipelines_options(folder):
    write("max_steps: 9\nmodel: {type: tiny}", "align.yaml")
    step = PipelineStep(stage="align", recipe="align.yaml", set={"kl": 0.5, "teacher.type": "dataset"})
    recipe = load_step(step, folder, {"from": "runs/p/sft", "output": "runs/p/align"})
    assert (recipe.max_steps, recipe.kl, recipe.from_, recipe.model) == (9, 0.5, "runs/p/sft", None)
    assert recipe.teacher == DatasetTeacher(type="dataset")


def test_a_wrong_set_names_the_step(folder):
    write("", "align.yaml")
    step = PipelineStep(stage="align", recipe="align.yaml", id="tune", set={"max_steps": "many", "klx": 1})
    with pytest.raises(RecipeError) as caught:
        load_step(step, folder)
    assert str(caught.value).splitlines() == [
        "step 'tune', set: max_steps: expected a whole number, or null, found text 'many'",
        "step 'tune', set: klx: no such key (did you mean kl?)",
    ]


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = """
    model: {path: ~/base}
    data: {path: ~/rows.jsonl}
    teacher: {store: ~/answers.sqlite}
    discriminator: {path: ~/discriminator, base: ~/small}
    output: ~/runs/align
    """
    recipe = load_recipe("align", write(text))
    named = [recipe.model.path, recipe.data.path, recipe.teacher.store, recipe.output]
    named += [recipe.discriminator.path, recipe.discriminator.base]
    assert named == [
        f"/home/me/{name}" for name in ("base", "rows.jsonl", "answers.sqlite", "runs/align", "discriminator", "small")
    ]
    assert load_recipe("rl", write("from: ~/runs/align")).from_ == "/home/me/runs/align"
    assert load_recipe("eval", write("runs: [~/runs/rl]")).runs == ("/home/me/runs/rl",)


@pytest.mark.parametrize("url", ["host/v1", "ftp://host/v1", "http://", "file:///etc/passwd"])
def test_an_endpoint_is_an_http_url(url):
    (line,) = problems("align", f"teacher: {{endpoint: '{url}'}}")
    assert line.endswith("teacher.endpoint: expected a URL that begins with http:// or https://")


@pytest.mark.parametrize(
    "override",
    ["teacher.endpoint=[http://me:s3cret@host", "teacher endpoint=http://me:s3cret@host", "hub_token=[s3cret"],
)
def test_an_override_that_can_not_be_read_is_not_repeated_where_it_may_hold_a_key(override):
    (line, *_) = problems("align", "seed: 1", [override])
    assert line.startswith(f"override {override[:8]!r}"[:-1])
    assert "s3cret" not in line
