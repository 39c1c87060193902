"""Drift: how far a policy's texts are from a teacher's, by whether a plain classifier can tell them apart.

A classifier two-sample test (Lopez-Paz and Oquab, 2017). It needs no particular model, so one number compares
checkpoints of any run: 0.5 cannot be told apart, 1 always told apart.
"""

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from prism_cli.evaluation.auc import FEWEST_PROMPTS, Array, clustered_auc
from prism_cli.evaluation.intervals import Interval, mean_interval, paired_difference
from prism_cli.responses import Response

FOLDS = 5

_TOKEN = r"\w+|[^\w\s]"
_MARK = re.compile(r"</?[A-Za-z][\w-]*>")
_BULLET = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+", re.M)
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?;。！？；])(?:\s+|(?<=[。！？；]))")
_COMMA = re.compile(r",\s+|[，、]")


class Counts(NamedTuple):
    """The mean number of some unit in a text, over prompts.

    Attributes:
        teacher: In the teacher's texts.
        policy: In the policy's.
        difference: Policy minus teacher on the same prompts, with its interval.
    """

    teacher: float
    policy: float
    difference: Interval


class Drift(NamedTuple):
    """The distance of policy and teacher in one part.

    Attributes:
        auc: Chance that the classifier finds the teacher's text the more teacher-like of two, on prompts it has not
            seen. Ties count half.
        matched: The same among texts of equal length, by their words alone; None where too few are equally long.
        words: Numbers of words and signs.
        steps: Numbers of sentences or lines.
        items: Numbers of phrases between commas, sentences or lines.
    """

    auc: Interval
    matched: Interval | None
    words: Counts
    steps: Counts
    items: Counts


class Separation(NamedTuple):
    """Out-of-fold scores of teacher and policy texts: the higher, the more like the teacher.

    Attributes:
        teacher: (N,).
        policy: (N,).
        teacher_content: (N,) without what the length says.
        policy_content: (N,) likewise.
        fold: (N,) the fold a pair was scored in; only scores of one fold can be compared.
    """

    teacher: Array
    policy: Array
    teacher_content: Array
    policy_content: Array
    fold: NDArray[np.int64]


def drift(teacher: Sequence[str], policy: Sequence[str], groups: Sequence[Hashable], seed: int = 0) -> Drift:
    """The distance of paired texts of one part.

    Args:
        teacher: (N,) texts of the teacher, one beside each of the policy's; repeated where a prompt has several.
        policy: (N,) texts of the policy.
        groups: (N,) the prompt each pair answers; its texts never stand on both sides of a fold.
        seed: Of folds and resampling.

    Raises:
        ValueError: fewer than 10 prompts.
    """
    prompts = _numbered(groups)
    scores = separate(teacher, policy, groups, seed)
    lengths = [np.array([word_count(text) for text in texts], dtype=float) for texts in (teacher, policy)]
    matched = clustered_auc(scores.teacher_content, scores.policy_content, prompts, scores.fold, seed, lengths)
    counts = [_counts(teacher, policy, prompts, count) for count in (word_count, step_count, item_count)]
    return Drift(_full_auc(scores, prompts, seed), matched, *counts)


class RunDrift(NamedTuple):
    """The distance of a run's responses from the teacher's answers.

    Attributes:
        metrics: Metric → estimate with its interval: `well_formed`, and `room/part`.
        counts: Part → unit → how many of it teacher and policy write.
    """

    metrics: dict[str, Interval]
    counts: dict[str, dict[str, dict[str, float]]]


def run_drift(
    parts: Sequence[str], answers: Sequence[Response], responses: Sequence[Sequence[Response]], seed: int
) -> RunDrift:
    """Drift of every part, over the prompts whose answer and response are both well-formed.

    Args:
        parts: Those the teacher writes.
        answers: (N,) the teacher's, by the grammar of the parts it writes.
        responses: (N, K) the policy's.
        seed: Of folds and resampling.

    Raises:
        ValueError: fewer than 10 prompts have both.
    """
    pairs = [
        (prompt, answer.parts, response.parts)
        for prompt, (answer, of_prompt) in enumerate(zip(answers, responses, strict=True))
        for response in of_prompt
        if response.well_formed and answer.well_formed
    ]
    prompts = [prompt for prompt, _, _ in pairs]
    metrics = {"well_formed": mean_interval([[float(one.well_formed) for one in group] for group in responses])}
    counts: dict[str, dict[str, dict[str, float]]] = {}
    for part in parts:
        apart = drift([answer[part] for _, answer, _ in pairs], [own[part] for _, _, own in pairs], prompts, seed)
        metrics[f"drift/{part}"] = apart.auc
        if apart.matched is not None:
            metrics[f"drift_length_matched/{part}"] = apart.matched
        for unit, count in {"words": apart.words, "steps": apart.steps, "items": apart.items}.items():
            metrics[f"extra_{unit}/{part}"] = count.difference
            counts.setdefault(part, {})[unit] = {"teacher": count.teacher, "policy": count.policy}
    return RunDrift(metrics, counts)


def drift_auc(teacher: Sequence[str], policy: Sequence[str], groups: Sequence[Hashable], seed: int = 0) -> Interval:
    """`drift(…).auc` alone, at half the work.

    Raises:
        ValueError: fewer than 10 prompts.
    """
    return _full_auc(separate(teacher, policy, groups, seed), _numbered(groups), seed)


def separate(teacher: Sequence[str], policy: Sequence[str], groups: Sequence[Hashable], seed: int = 0) -> Separation:
    """Scores every text by a classifier that has not seen its prompt: logistic regression on TF-IDF of words, word
    pairs and the length.

    Args:
        teacher: (N,) texts.
        policy: (N,) texts.
        groups: (N,) the prompt of each pair.
        seed: Of the folds.

    Raises:
        ValueError: fewer than 10 prompts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    if (count := len(set(groups))) < FEWEST_PROMPTS:
        raise ValueError(f"{count} prompts; telling texts apart takes {FEWEST_PROMPTS} at least")
    texts, prompts = [*teacher, *policy], _numbered(groups)
    is_teacher = np.repeat([1, 0], len(prompts))
    words = TfidfVectorizer(lowercase=False, token_pattern=_TOKEN, ngram_range=(1, 2), sublinear_tf=True)
    # A text repeated for each of its prompt's rollouts must not weigh more in its own words' rarity: that alone would
    # tell the sides apart.
    different = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    content = words.fit_transform(list(different))[[different[text] for text in texts]]
    length = np.log([word_count(text) + 1 for text in texts])
    length = (length - length.mean()) / (length.std() or 1.0)
    features = sparse.csr_array(sparse.hstack([content, length[:, None]]))
    scores, without_length, fold = (np.zeros(len(texts)) for _ in range(3))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (train, test) in enumerate(folds.split(features, is_teacher, np.tile(prompts, 2))):
        model = LogisticRegression(max_iter=1000).fit(features[train], is_teacher[train])
        scores[test] = model.decision_function(features[test])
        without_length[test] = scores[test] - model.coef_[0, -1] * length[test]
        fold[test] = number
    n = len(prompts)
    return Separation(scores[:n], scores[n:], without_length[:n], without_length[n:], fold[:n].astype(np.int64))


def word_count(text: str) -> int:
    """Words and signs of a text, the marks of its blocks left out."""
    return len(re.findall(_TOKEN, _MARK.sub("\n", text)))


def step_count(text: str) -> int:
    """Sentences or lines of a text; the bullets and numbers of a list don't count."""
    return len(_sentences(text))


def item_count(text: str) -> int:
    """Phrases of a text: its sentences or lines, cut at commas."""
    return sum(bool(phrase.strip()) for sentence in _sentences(text) for phrase in _COMMA.split(sentence))


def _sentences(text: str) -> list[str]:
    plain = _BULLET.sub("", _MARK.sub("\n", text))
    return [sentence for sentence in _SENTENCE_END.split(plain) if re.search(r"\w", sentence)]


def _numbered(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """(N,) 0, 1, … in the order prompts first appear."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], dtype=np.int64)


def _counts(teacher: Sequence[str], policy: Sequence[str], prompts: NDArray[np.int64], count) -> Counts:
    values: list[list[list[int]]] = [[[] for _ in range(prompts.max() + 1)] for _ in range(2)]
    for side, texts in enumerate((teacher, policy)):
        for prompt, text in zip(prompts, texts, strict=True):
            values[side][prompt].append(count(text))
    means = [float(np.mean([np.mean(group) for group in side])) for side in values]
    return Counts(means[0], means[1], paired_difference(values[0], values[1]))


def _full_auc(scores: Separation, prompts: NDArray[np.int64], seed: int) -> Interval:
    auc = clustered_auc(scores.teacher, scores.policy, prompts, scores.fold, seed)
    assert auc is not None, "every prompt has a text on both sides"
    return auc
