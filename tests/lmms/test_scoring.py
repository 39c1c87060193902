"""Each of the paper's benchmarks scores a final answer as lmms-eval's own code does, and asks no model to."""

import importlib.util
import os
from pathlib import Path

import lmms_eval.tasks
import pytest

from prism_cli.evaluation.lmms import (
    TASKS,
    _line,
    _notice_judges,
    _said,
    _scores,
    _take_answers,
    known_tasks,
    llm_judge_environment,
)
from prism_cli.rewards.accuracy import is_correct

OPTIONS = "['12', '13', '14', '15']"
VISTA = {"pid": "1", "query": "q", "answer_type": "text", "metadata": {}, "precision": None}
VERSE = dict.fromkeys(("sample_index", "problem_index", "problem_version", "metadata", "query_wo", "query_cot"), "")
HALLUSION = {"category": "VD", "subcategory": "chart", "set_id": "1", "figure_id": "1", "question_id": "1"}
WE = {"ID": 1, "split": "testmini", "knowledge concept": "", "option": "A. 3; B. 4", "key": "2steps_1"}
WE |= {"question number": 1, "knowledge concept description": "", "question": "How long is it?"}
# Task, file and function that score it, a question, what is right, what is wrong, the metric.
CASES = [
    (
        "mathvista_testmini_format",
        "mathvista/utils.py:mathvista_process_results",
        VISTA | {"question_type": "multi_choice", "choices": ["red", "blue"], "answer": "blue"},
        ("(B)", "A"),
        "llm_as_judge_eval",
    ),
    (
        "mathverse_testmini",
        "mathverse/utils.py:mathverse_process_results",
        VERSE | {"question": "Angle?", "question_for_eval": "Angle?", "question_type": "free-form", "answer": "60°"},
        ("60 degrees", "61"),
        "gpt_eval_score",
    ),
    (
        "mathvision_test",
        "mathvision/utils.py:mathvision_process_results",
        {"answer": "\\frac{1}{2}", "options": []},
        ("0.5", "2"),
        "mathvision_standard_eval",
    ),
    (
        "wemath_testmini_reasoning",
        "wemath/reasoning/utils.py:wemath_reasoning_process_results",
        WE | {"answer": "B"},
        ("B", "A"),
        "acc_score",
    ),
    (
        "mmmu_val",
        "mmmu/utils.py:mmmu_process_results",
        {"id": "validation_Art_1", "question_type": "multiple-choice", "options": OPTIONS, "answer": "C"},
        ("C.", "D"),
        "mmmu_acc",
    ),
    (
        "mmmu_pro_standard",
        "mmmu_pro/utils.py:mmmu_pro_process_results",
        {"id": "test_Art_1", "subject": "Art", "question": "?", "options": OPTIONS, "answer": "C"},
        ("(C)", "D"),
        "mmmu_acc",
    ),
    (
        "mmmu_pro_vision",
        "mmmu_pro/utils.py:mmmu_pro_process_results",
        {"id": "test_Art_1", "subject": "Art", "options": OPTIONS, "answer": "C"},
        ("(C)", "D"),
        "mmmu_acc",
    ),
    (
        "hallusion_bench_image",
        "hallusion_bench/evaluate_hb.py:hb_process_results",
        HALLUSION | {"question": "Is it longer?", "gt_answer": "0", "gt_answer_details": "It is not."},
        ("No.", "Yes, it is"),
        "aAcc",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def answers_taken():
    # No key of whoever runs the tests; its classes want one to be made.
    os.environ |= llm_judge_environment(None, None, None)
    _notice_judges(judged=False)
    _take_answers([task for tasks in TASKS.values() for task in tasks], False, is_correct)


def processed(place, doc, answer):
    """What a task's own function says of an answer; loaded as lmms-eval loads it, from its file."""
    path, _, function = place.partition(":")
    spec = importlib.util.spec_from_file_location("of_the_task", Path(lmms_eval.tasks.__file__).parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)(doc, [answer])


def score(task, place, doc, answer, metric):
    said = _said(task, answer)
    sample = {"doc_id": 0, "filtered_resps": [said], "target": "", **processed(place, doc, said)}
    return _line(task, sample, set())["scores"][metric]


def test_all_of_them_are_tasks_of_this_lmms_eval():
    known = lmms_eval.tasks.TaskManager("ERROR").all_tasks
    assert {task for tasks in TASKS.values() for task in tasks} <= set(known)
    assert {case[0] for case in CASES} == {task for tasks in TASKS.values() for task in tasks}


def test_a_task_lmms_eval_does_not_know_is_named_before_any_work():
    with pytest.raises(ValueError, match=r"knows no task mathvisat \(near it: mathvista"):
        known_tasks(["mmmu", "mathvisat"], None)


@pytest.mark.parametrize(("task", "place", "doc", "answers", "metric"), CASES, ids=[case[0] for case in CASES])
def test_a_right_answer_scores_one_a_wrong_and_a_missing_one_none(task, place, doc, answers, metric):
    right, wrong = answers
    assert [score(task, place, doc, answer, metric) for answer in (right, wrong, "")] == [1.0, 0.0, 0.0]


def test_a_figure_of_hallusionbench_is_solved_when_all_its_questions_are():
    def line(doc, question, figure, right, unanswered=()):
        said = {**HALLUSION, "question_id": question, "figure_id": figure, "gt_answer": "1"}
        said["model_prediction"] = "yes" if right else "no"
        sample = {"doc_id": doc, "filtered_resps": ["yes"], "target": ""} | dict.fromkeys(
            ("aAcc", "qAcc", "fAcc"), said
        )
        return _line("hallusion_bench_image", sample, set(unanswered))

    lines = [line(0, "0", "1", True), line(1, "1", "1", False), line(2, "0", "2", True), line(3, "1", "2", True)]
    found = {
        one.metric: one
        for one in _scores("hallusion_bench_image", lines, dict.fromkeys(("aAcc,none", "qAcc,none", "fAcc,none"), 0))
    }
    # Questions 3 of 4; question 0 on both figures right and question 1 not; figure 2 whole and figure 1 not.
    assert {name: (one.value, one.questions) for name, one in found.items()} == {
        "aAcc": (0.75, 4),
        "qAcc": (0.5, 2),
        "fAcc": (0.5, 2),
    }
    # Without a response to one of figure 2's questions nothing is known of that figure, nor of question 1.
    lines[3] = line(3, "1", "2", True, [("hallusion_bench_image", 3)])
    found = {one.metric: one for one in _scores("hallusion_bench_image", lines, dict.fromkeys(("qAcc", "fAcc"), 0))}
    assert {name: (one.value, one.questions, one.failed) for name, one in found.items()} == {
        "qAcc": (1.0, 1, 1),
        "fAcc": (0.0, 1, 1),
    }
