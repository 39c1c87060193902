"""lmms-eval's tasks put to a policy, and each question's score read off what the task says of it.

Runs where the extra `eval` is installed, in a process of its own: lmms-eval prints, seeds and patches as it likes.
"""
# pyright: reportMissingImports=false

import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

from prism_cli.evaluation.intervals import mean_interval

# Benchmarks of the method's paper → lmms-eval's tasks.
TASKS: dict[str, tuple[str, ...]] = {
    "mathvista": ("mathvista_testmini_format",),
    "mathverse": ("mathverse_testmini",),
    "mathvision": ("mathvision_test",),
    "wemath": ("wemath_testmini_reasoning",),
    "mmmu": ("mmmu_val",),
    "mmmu_pro": ("mmmu_pro_standard", "mmmu_pro_vision"),
    "hallusionbench": ("hallusion_bench_image",),
}
JUDGE_FAILED = "prism_judge_failed"

Messages = Callable[[], list[dict[str, Any]]]
Answer = Callable[[str, Sequence[tuple[int, Messages]]], Sequence[str | None]]
"""Of a task and its questions, each an id and what makes its chat: final answers, "" where a response has none and None
where there is no response."""


class Score(NamedTuple):
    """One metric of a task.

    Attributes:
        task: lmms-eval's name.
        metric: lmms-eval's name.
        value: Mean over the questions that were answered and judged; where the task scores no single question, what it
            makes of all of them. None where there is none.
        low: Lower end of its interval, None where there is none.
        high: Upper end.
        questions: Questions it rests on.
        failed: Questions left out: no response, or no verdict of the task's LLM judge.
    """

    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    questions: int
    failed: int


def llm_judge_environment(endpoint: str | None, model: str | None, key: str | None) -> dict[str, str]:
    """Environment variables by which lmms-eval's tasks find the LLM judge; without one they ask nobody and get no key.

    Args:
        endpoint: Base URL, or None for no LLM judge.
        model: Its model.
        key: Its key.
    """
    url, key = endpoint or "http://127.0.0.1:9/v1", key or "none"
    found = {"API_TYPE": "openai", "OPENAI_API_KEY": key, "OPENAI_API_URL": url, "OPENAI_API_BASE": url}
    found |= {"JUDGE_API_KEY": key, "JUDGE_BASE_URL": url, "USE_LLM_JUDGE": str(endpoint is not None)}
    return found | ({"MODEL_VERSION": model, "JUDGE_MODEL_NAME": model} if model else {})


def known_tasks(names: Sequence[str], include: str | None) -> Any:
    """lmms-eval's manager of tasks, which knows all of these.

    Args:
        names: Names of `TASKS`, or any tasks or groups lmms-eval knows.
        include: Folder with further tasks.

    Raises:
        ValueError: there is no such task; names those that are spelled alike.
    """
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("WARNING", include_path=include, model_name="prism")
    known = [*TASKS, *manager.all_tasks]
    if missing := [name for name in names if name not in known]:
        near = get_close_matches(missing[0], known)
        hint = f" (near it: {', '.join(near)})" if near else ""
        raise ValueError(f"lmms-eval knows no task {', '.join(missing)}{hint}")
    return manager


def run_task(
    name: str,
    answer: Answer,
    *,
    manager: Any,
    limit: int | None,
    output: str,
    judged: bool,
    verify: Callable[[str, list[str], str], bool],
) -> tuple[list[Score], list[dict[str, Any]]]:
    """Puts a benchmark's questions to a policy; gives its metrics and a line a question.

    Args:
        name: A name of `TASKS`, or any task or group lmms-eval knows.
        answer: Answers questions.
        manager: From `known_tasks`.
        limit: Questions a task at most.
        output: Folder for what tasks write.
        judged: Whether an LLM judge may be asked.
        verify: Whether an answer is one of the accepted ones to a question, by rules.
    """
    from argparse import Namespace

    from lmms_eval.evaluator import simple_evaluate

    _notice_judges(judged)
    os.makedirs(output, exist_ok=True)
    wanted: list[Any] = list(TASKS.get(name, (name,)))
    _take_answers(wanted, judged, verify)
    model = _model(answer)
    results: Any = simple_evaluate(
        model=model,
        tasks=wanted,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        process_docs_parallel=1,  # which question an LLM judge failed on is known by the order
        cli_args=Namespace(output_path=output, process_with_media=False),
    )
    scores: list[Score] = []
    lines: list[dict[str, Any]] = []
    for task, samples in results["samples"].items():
        found = [_line(task, sample, model.unanswered) for sample in samples]
        scores += _scores(task, found, results["results"].get(task, {}))
        lines += found
    return scores, lines


# The policy as lmms-eval sees it -------------------------------------------------------------------------------------


def _model(answer: Answer) -> Any:
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.api.model import lmms

    class Policy(lmms):
        is_simple = False

        def __init__(self) -> None:
            super().__init__()
            self.unanswered: set[tuple[str, int]] = set()

        def generate_until(self, requests: list[Any]) -> list[Any]:
            found: dict[int, str] = {}
            for task in dict.fromkeys(request.args[4] for request in requests):
                places = [i for i, request in enumerate(requests) if request.args[4] == task]
                asked = [(requests[i].args[3], self._messages(requests[i])) for i in places]
                for i, (doc, _), text in zip(places, asked, answer(task, asked), strict=True):
                    if text is None:
                        self.unanswered.add((task, doc))
                    found[i] = _said(task, text or "")
            return [GenerationResult(text=found[i]) for i in range(len(requests))]

        def _messages(self, request: Any) -> Messages:
            _, to_messages, _, doc, task, split = request.args
            return lambda: [_message(one) for one in to_messages(self.task_dict[task][split][doc])]

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise NotImplementedError("a task of options weighed by likelihood; take one that generates")

        def generate_until_multi_round(self, requests: list[Any]) -> Any:
            raise NotImplementedError("a task of several rounds; take one that asks once")

    return Policy()


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = (
        message["content"] if isinstance(message["content"], list) else [{"type": "text", "text": message["content"]}]
    )
    if other := {part["type"] for part in content} - {"text", "image"}:
        raise NotImplementedError(f"a task with {', '.join(sorted(other))}; the policy reads text and pictures")
    parts = [
        {"type": "image", "image": part["url"]} if part["type"] == "image" else {"type": "text", "text": part["text"]}
        for part in content
    ]
    return {"role": message["role"], "content": parts}


def _said(task: str, answer: str) -> str:
    """A final answer in the form the task's rules read: an option's letter bare."""
    answer = answer.strip()
    if letter := re.fullmatch(r"\(?([A-J])\)?[.:]?", answer):
        answer = letter[1]
    # Tasks "reasoning" look for these tags and nothing else.
    return f"<answer>{answer}</answer>" if answer and task.endswith("_reasoning") else answer


# Scores --------------------------------------------------------------------------------------------------------------


def _notice_judges(judged: bool) -> None:
    """Marks the questions on which a task's LLM judge fails: the task would count them as wrong."""
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.llm_judge.providers.openai import OpenAIProvider

    judge_class, task_class = cast(Any, OpenAIProvider), cast(Any, ConfigurableTask)
    if hasattr(task_class, "judges_noticed"):
        return
    failures: list[str] = []
    ask, process = judge_class.evaluate, task_class.process_results

    def asked(self: Any, request: Any) -> Any:
        failures.append("under way")
        if not judged:
            raise ValueError("the task wants an LLM judge and benchmarks.llm_judge names none")
        response = ask(self, request)
        failures.pop()
        return response

    def processed(self: Any, doc: Any, results: Any, full_docs: Any = None) -> Any:
        failures.clear()
        found = process(self, doc, results, full_docs)
        return {**found, JUDGE_FAILED: bool(failures)}

    judge_class.evaluate, task_class.process_results, task_class.judges_noticed = asked, processed, True


def _take_answers(tasks: Sequence[str], judged: bool, verify: Callable[[str, list[str], str], bool]) -> None:
    """Has tasks take the final answer for what it is, where they would ask a model to find it in a text or to compare
    it; tasks hold no copies of these classes, and import them only now."""
    if any(task.startswith("mathvision") for task in tasks):
        import latex2sympy2_extended

        # What it names can't be imported as it is published; this is its successor, with the same function.
        sys.modules["latex2sympy2"] = latex2sympy2_extended
    if any(task.startswith("mathvista") for task in tasks):
        from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator

        MathVistaEvaluator.extract_answer = lambda self, response, problem, quick_extract=False: response
    if any(task.startswith("mathverse") for task in tasks):
        from lmms_eval.tasks.mathverse.mathverse_evals import MathVerseEvaluator

        evaluator = cast(Any, MathVerseEvaluator)
        compare = getattr(evaluator, "by_a_model", evaluator.score_answer)

        def same(self: Any, question: str, answer: Any, response: str, quick_match: bool = False) -> Any:
            right = bool(response) and verify(response, [str(answer)], question)
            return right or (judged and bool(response) and compare(self, question, answer, response, quick_match))

        evaluator.by_a_model, evaluator.score_answer = compare, same
    if any(task.startswith("hallusion") for task in tasks):
        from lmms_eval.tasks.hallusion_bench import utils as hallusion

        def yes_or_no(data: list[dict[str, Any]], output_entry: str, correctness_entry: str, **_: Any) -> Any:
            return [one | {correctness_entry: str(int(_agrees(one[output_entry], one["gt_answer"])))} for one in data]

        hallusion.evaluate_by_chatgpt = yes_or_no


def _agrees(answer: str, accepted: Any) -> bool:
    word = re.match(r"\W*(yes|no)\b", answer.casefold())
    return word is not None and (word[1] == "yes") == (str(accepted) == "1")


def _line(task: str, sample: Mapping[str, Any], unanswered: set[tuple[str, int]]) -> dict[str, Any]:
    """The line of a question: its answer and each metric's score."""
    doc, said = sample["doc_id"], sample["filtered_resps"][0]
    text = said if isinstance(said, str) else next(iter(said), "")
    failed = "no response" if (task, doc) in unanswered else "no verdict" if sample.get(JUDGE_FAILED) else None
    known = (
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "token_counts",
        "doc_hash",
        "input_media",
    )
    metrics = {name: value for name, value in sample.items() if name not in (*known, JUDGE_FAILED, "submission")}
    scores = {name: _score(task, name, value, bool(text)) for name, value in metrics.items()}
    group = {name: _group(metrics[name], name) for name in metrics if name in ("qAcc", "fAcc")}
    return {
        "task": task,
        "doc": doc,
        "answer": text,
        "target": sample["target"],
        "failed": failed,
        "scores": scores,
    } | ({"group": group} if group else {})


def _score(task: str, metric: str, value: Any, answered: bool) -> float | None:
    """A question's score, 0 to 1 where the metric is a share; None where the task has none a question."""
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, Mapping) or metric in ("wemath_loose", "wemath_strict"):
        return None
    if task.startswith("hallusion"):
        return float(_agrees(value["model_prediction"], value["gt_answer"]))
    if task.startswith("mmmu"):
        # Its rules draw an option where they find none.
        return _mmmu(task, value) if answered else 0.0
    if isinstance(value.get("scores"), list) and value["scores"]:
        return sum(map(float, value["scores"])) / len(value["scores"])
    found = next((value[key] for key in ("true_false", "correct", "acc_score", "score") if key in value), None)
    return float(found) if isinstance(found, bool | int | float) else None


def _mmmu(task: str, value: Mapping[str, Any]) -> float | None:
    if task.startswith("mmmu_pro"):
        return float(value["parsed_pred"] == value["answer"])
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    return float(cast(Any, evaluate_mmmu)([value])[0][value["id"]] == "Correct")


def _group(value: Mapping[str, Any], metric: str) -> str:
    """HallusionBench counts a question, or a figure, as solved when all about it is."""
    which = "question_id" if metric == "qAcc" else "figure_id"
    return "_".join(str(value[key]) for key in ("category", "subcategory", "set_id", which))


def _scores(task: str, lines: Sequence[Mapping[str, Any]], aggregated: Mapping[str, Any]) -> Iterator[Score]:
    whole = [line for line in lines if line["failed"] is None]
    failed = len(lines) - len(whole)
    whole_value = {key.partition(",")[0]: value for key, value in aggregated.items() if "_stderr" not in key}
    for metric in dict.fromkeys(name for line in lines for name in line["scores"]):
        if metric not in whole_value:
            continue
        # What one question of a group would have said is not known of the group either.
        lost = {line["group"].get(metric) for line in lines if line["failed"] and "group" in line}
        known = [(line.get("group", {}).get(metric, line["doc"]), line["scores"][metric]) for line in whole]
        values = [(group, score) for group, score in known if group not in lost]
        if values and all(score is not None for _, score in values):
            groups: dict[Any, list[float]] = defaultdict(list)
            for group, score in values:
                groups[group].append(score)
            found = mean_interval([[min(scores)] for scores in groups.values()])
            yield Score(task, metric, found.value, found.low, found.high, found.n, failed)
        else:
            value = whole_value[metric]
            number = isinstance(value, int | float) and not isinstance(value, bool) and not failed
            yield Score(task, metric, float(value) if number else None, None, None, len(whole), failed)
