"""What rewards make of texts whose worth is known, and when that stops a run before it starts."""

import json
import time

import pytest
from tests.faulty_endpoint import FaultyEndpoint
from typer.testing import CliRunner

from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, resolve_teacher
from prism_cli.cli.app import app
from prism_cli.data.rows import dataset, row
from prism_cli.errors import PrismError
from prism_cli.recipes.identity import differences, to_dict, to_yaml
from prism_cli.recipes.load import load_recipe
from prism_cli.responses import Grammar, Part, ResponseSettings
from prism_cli.rewards.audit import audit
from prism_cli.rewards.verdict import Accuracy
from prism_cli.runs.folder import open_run
from prism_cli.stages.rl_audit import audit_before_training

TAGGED = Grammar({"perception": Part(("caption",), 0.5), "reasoning": Part(("think", "answer"), 0.5)})
WHOLE = Grammar({"whole": Part((), 1.0)}, None)
QUESTIONS = {
    "a": ("What is it? A. a cat B. a dog", ["B"]),
    "b": ("How heavy is it?", ["5 kg"]),
    "c": ("Which colour?", ["dark red"]),
    "d": ("How many?", ["1,234", "1234"]),
}


def rows(*teachers):
    said = [*teachers, *[None] * len(QUESTIONS)]
    return [
        row(id, question, [], answers=answers, teacher_response=text)
        for (id, (question, answers)), text in zip(QUESTIONS.items(), said, strict=False)
    ]


def rendered(answer):
    return TAGGED.render({"caption": "x", "think": "y", "answer": answer})


def score(rule):
    return lambda responses, rows, lengths: {"accuracy": list(map(rule, responses, rows, lengths))}


def audited(rule=None, grammar=TAGGED, teachers=(None,) * 4):
    return audit(rows(), grammar, score(rule or Accuracy()), 100, teachers)


def means(found):
    return {case.name: case.means.get("accuracy") for case in found.cases}


# Texts ----------------------------------------------------------------------------------------------------------------


def test_the_rules_give_nothing_for_nothing_and_one_for_the_reference():
    found = audited()
    assert means(found) == {
        "an empty response": 0.0,
        "an empty answer block": 0.0,
        "all options listed": 0.0,
        "the question copied": 0.0,
        "right answer, wrong tag": 0.0,
        "an over-long answer": 0.0,
        "the number, another unit": 0.0,
        "the number, no unit": 1.0,
        "the reference itself": 1.0,
        "the teacher's own answers": None,
    }
    assert found.case("the number, another unit").rows == 1  # 5 kg alone has a unit
    assert found.case("the teacher's own answers").rows == 0
    assert found.problems(0.2) == []
    assert [one for case in found.cases for one in case.surprises] == []


def test_every_text_is_what_its_name_says():
    seen = []
    audited(lambda response, row, length: seen.append((row["id"], response, length)) or 0.0)
    assert [response.text for id, response, _ in seen if id == "a"][:6] == [
        "",
        "<caption> something </caption> <think> something </think> <answer>  </answer>",
        "<caption> something </caption> <think> something </think> <answer> A. a cat B. a dog </answer>",
        "<caption> something </caption> <think> something </think> <answer> What is it? A. a cat B. a dog </answer>",
        "<caption> something </caption> <think> something </think> <other> B </other>",
        "<caption> something </caption> <think> something </think> <answer> B" + " so" * 1024 + " </answer>",
    ]
    answers = [response.answer for id, response, _ in seen if id == "b"]
    # Where no options are listed the reference stands among answers to other questions.
    assert answers[2] == "B; dark red; 1,234; 5 kg"
    assert answers[6:] == ["5 lb", "5", "5 kg"]
    assert max(length for _, _, length in seen) == 100  # the over-long answer is as long as a response may be


def test_a_text_without_tags_has_no_wrong_tag_and_no_empty_block():
    found = audited(grammar=WHOLE)
    assert found.case("right answer, wrong tag").rows == found.case("an empty answer block").rows == 0
    assert means(found)["the reference itself"] == 1.0
    assert means(found)["an empty response"] == 0.0


def test_a_rule_that_pays_for_an_empty_answer_is_refused():
    problem, _ = audited(lambda response, row, length: float(response.answer is None)).problems(1.0)
    assert problem.startswith("accuracy rewards an empty response on 4 of 4 rows: row a: malformed, <caption> stands 0")


def test_more_of_the_teachers_answers_wrong_than_allowed_is_refused_with_three_of_them():
    said = [TAGGED.parse(rendered(text)) for text in ("A", "6 kg", "blue", "1234")]
    found = audited(teachers=said)
    assert means(found)["the teacher's own answers"] == 0.25
    assert found.problems(0.75) == []
    (problem,) = found.problems(0.74)
    assert "3 of 4 answers of the teacher are judged wrong, more than the 74%" in problem
    assert "row a: 'A', reference 'B'; row b: '6 kg', reference '5 kg'; row c: 'blue', reference 'dark red'" in problem


def test_what_a_judge_would_decide_is_left_open_and_not_wrong():
    said = [None, None, TAGGED.parse(rendered("crimson")), None]
    case = audited(Accuracy(lambda asked: [None] * len(asked)), teachers=said).case("the teacher's own answers")
    assert (case.rows, case.unscored, case.surprises, case.means["accuracy"]) == (1, 1, [], None)


# The stage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, *teachers):
    lines = [
        {"id": one["id"], "question": QUESTIONS[one["id"]][0], "answers": one["answers"]}
        | ({"teacher_response": text} if text else {})
        for one, text in zip(rows(), [*teachers, *[None] * 4], strict=False)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def prism(*words):
    return CliRunner().invoke(app, ["rl", "--data", "rows.jsonl", "--audit", *words])


def test_the_command_prints_a_table_and_writes_nothing(folder):
    write(folder)
    done = prism()
    assert done.exit_code == 0, done.output
    assert "none known" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["rows.jsonl"]


def test_the_command_fails_where_training_would_be_refused(folder):
    write(folder, *map(rendered, ("A", "6 kg", "blue", "1234")))
    done = prism("--json")
    assert done.exit_code == 1
    values = json.loads(done.stdout)
    assert values["cases"][-1]["means"] == {"accuracy": 0.25, "format": 1.0}
    assert "3 of 4 answers of the teacher are judged wrong" in values["problems"][0]
    assert "refused: 3 of 4" in done.stderr
    assert "hint: mend the answers of the data, or give rewards.llm_judge" in done.stderr
    assert prism("rewards.max_wrong=0.8").exit_code == 0


def test_the_command_asks_no_judge_and_says_so(folder):
    write(folder, *map(rendered, ("B", "5 kg", "crimson", "1234")))
    with FaultyEndpoint() as endpoint:
        judge = f"rewards.llm_judge={{endpoint: {endpoint.url}, model: m}}"
        done = prism("--json", judge)
        assert "judge not asked" in " ".join(prism(judge).stdout.split())
        assert endpoint.asked.total() == 0
    values = json.loads(done.stdout)
    assert values["llm_judge"] == "not asked"
    assert values["cases"][-1]["unscored"] == 1
    assert prism("--json").exit_code == 1  # without the judge that answer is wrong


def test_rewards_of_the_users_own_are_tried_on_every_text(folder):
    write(folder)
    (folder / "audited_rewards.py").write_text(
        "def first(response, row, length):\n    return response.answer[0] == 'x'"
    )
    done = prism("rewards.custom={first: {function: audited_rewards.first}}")
    assert done.exit_code == 1
    assert "rewards.custom.first: audited_rewards.first on row a: TypeError" in " ".join(done.stderr.split())


def test_json_goes_with_the_audit(folder):
    assert CliRunner().invoke(app, ["rl", "--json"]).exit_code == 2


@pytest.mark.parametrize("option", ["--resume", "--fresh"])
def test_what_concerns_training_does_not_go_with_the_audit(folder, option):
    write(folder)
    done = prism(option)
    assert done.exit_code == 2
    assert "--audit trains nothing" in done.stderr


def test_training_is_refused_as_the_audit_is(capsys):
    settings = ResponseSettings(TAGGED, "Answer so.")
    recipe = load_recipe("rl")
    audit_before_training(recipe, dataset(rows()), settings)
    assert capsys.readouterr().out == "rewards audited on 4 rows: accuracy 1.00 on the reference itself\n"
    with pytest.raises(PrismError) as error:
        audit_before_training(recipe, dataset(rows("A cat.", "5 kg")), settings)
    assert "2 of 2 answers of the teacher are judged wrong" in str(error.value)
    assert "judged wrong (2 for their form)" in str(error.value)
    assert "row a: malformed, <caption> stands 0 times, reference 'B'" in str(error.value)
    assert error.value.hint.startswith("name the tags the teacher writes in response.parts")
    assert "judge" not in error.value.hint


def test_the_answers_kept_by_the_run_it_starts_from_are_its_teachers(folder):
    with FaultyEndpoint() as endpoint:
        teacher = f"{{endpoint: {endpoint.url}, model: m, check: false, instruction: null, store: kept.sqlite}}"
        align = load_recipe("align", None, [f"teacher={teacher}", "max_steps=1"])
        run = open_run(folder / "runs/align", "align", to_dict(align), to_yaml(align), differences)
        known = dataset(rows()[:2])
        questions = TeacherQuestions((known,), ResponseSettings(WHOLE, None))
        with open_teacher(resolve_teacher(align.teacher), run, questions) as answers:
            answers.answers([{"id": "a"}, {"id": "b"}])
    (run.folder / "model").mkdir()
    settings = {"parts": {"whole": {"tags": [], "weight": 1.0}}, "answer": None, "instruction": None}
    (run.folder / "model/response.json").write_text(json.dumps(settings))
    run.update(status="finished", finished="2026")
    write(folder)
    done = prism("--from", "runs/align", "--json")
    case = json.loads(done.stdout)["cases"][-1]
    # The endpoint answers "answer to …", which is wrong on both rows it was asked about; the other two are not known.
    assert (case["rows"], case["means"]["accuracy"], done.exit_code) == (2, 0.0, 1)
    assert case["surprises"][0]["answer"] == "answer to What is it? A. a cat B. a dog"


def test_an_audit_of_tiny_rows_takes_no_time():
    found = load_recipe("rl", "tiny")
    from prism_cli.stages import rl_audit as stage

    stage.run(found)  # imports
    started = time.process_time()
    assert stage.run(found).rows == 64
    assert time.process_time() - started < 2
