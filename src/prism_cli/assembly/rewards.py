"""Rewards and algorithm of an RL recipe: rules with weights, the LLM judge, the user's own functions."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prism_cli import processes
from prism_cli.assembly.checks import Plan
from prism_cli.assembly.data import first_rows
from prism_cli.assembly.endpoint import in_section
from prism_cli.assembly.llm_judge import Ask, llm_judge_costs, llm_judge_line, open_llm_judge
from prism_cli.assembly.response import response_settings
from prism_cli.errors import BudgetError, PrismError, RecipeError, TeacherError
from prism_cli.recipes.stages import RLRecipe
from prism_cli.recipes.teachers import LLMJudge
from prism_cli.recipes.training import DAPO, GRPO, GSPO
from prism_cli.recipes.training import Algorithm as AlgorithmSection
from prism_cli.rewards.custom import custom_rule, find_function
from prism_cli.rewards.format import format_reward
from prism_cli.rewards.shaping import overlong_penalty, repetition_penalty
from prism_cli.rewards.verdict import Accuracy, GivenAnswer
from prism_cli.trainers.algorithms import SEQUENCE_LEVEL, TOKEN_LEVEL, Algorithm, Resampling
from prism_cli.trainers.verified_reward import Rule, VerifiedReward

LLM_JUDGE = "rewards.llm_judge"
# So many rows tell what share has free-text answers.
ROWS_TO_COUNT = 64
OWN_NAMES = ("accuracy", "format", "overlong", "repetition")


def algorithm_of(section: AlgorithmSection) -> Algorithm:
    """The algorithm that a recipe names: loss, clips, penalty of length, dynamic sampling."""
    clips: dict[str, Any] = {"epsilon": section.clip_low, "epsilon_high": section.clip_high}
    match section:
        case GRPO():
            return Algorithm("grpo", {**TOKEN_LEVEL, **clips, "delta": section.dual_clip})
        case DAPO():
            resampling = Resampling(section.oversample, section.max_rounds) if section.max_rounds else None
            loss = {**TOKEN_LEVEL, **clips, "delta": section.dual_clip}
            return Algorithm("dapo", loss, overlong_buffer=section.overlong_buffer, resampling=resampling)
        case GSPO():
            return Algorithm("gspo", {**SEQUENCE_LEVEL, **clips}, by_sequence=True)


def check_rewards(recipe: RLRecipe) -> Plan:
    """The plan's lines about rewards; finds what is wrong with them without a model or an endpoint.

    Raises:
        RecipeError: a function that can't be found or called, a name that is taken, an LLM judge without an endpoint, a
            penalty on every response, or no reward with a weight.
    """
    buffer = algorithm_of(recipe.algorithm).overlong_buffer
    if buffer >= recipe.max_response_tokens:
        raise RecipeError(
            f"algorithm.overlong_buffer {buffer} is not below max_response_tokens {recipe.max_response_tokens}, so "
            "every response would be penalised",
            "lower algorithm.overlong_buffer; 0 switches the penalty off",
        )
    weights = reward_rules(recipe).weights
    if not any(weights.values()):
        raise RecipeError("no reward has a weight", "give rewards.accuracy a weight above 0")
    total = " + ".join(f"{weight:g} · {name}" for name, weight in weights.items() if weight or name == "accuracy")
    return [("reward", total.replace("+ -", "- ")), *_llm_judge_lines(recipe)]


def _llm_judge_lines(recipe: RLRecipe) -> Plan:
    if (section := recipe.rewards.llm_judge) is None:
        return []
    lines = [llm_judge_line(section, LLM_JUDGE)]
    if recipe.data is None:
        return lines
    try:
        rows = first_rows(recipe.data, response_settings(recipe), ROWS_TO_COUNT)
    except PrismError as error:
        return [*lines, ("LLM judge calls", f"not known yet: {error}")]
    answers = recipe.prompts_per_step * recipe.rollouts
    if (resampling := algorithm_of(recipe.algorithm).resampling) is not None:
        answers *= resampling.oversample  # a round
    return [*lines, *llm_judge_costs(section, LLM_JUDGE, rows, answers)]


@contextmanager
def build_rewards(recipe: RLRecipe, run_folder: Path) -> Iterator[VerifiedReward]:
    """The recipe's rewards; an LLM judge's client is open as long as the context.

    Args:
        recipe: The stage's recipe.
        run_folder: Whose spending on the LLM judge counts; its llm_judge.json has the sums.

    Raises:
        RecipeError: see `check_rewards`.
        TeacherError: the LLM judge can't be reached; later, it failed for good.
        BudgetError: later, a cap was reached.
    """
    if recipe.rewards.llm_judge is None:
        yield reward_rules(recipe)
        return
    with _asking_for_all(recipe.rewards.llm_judge, run_folder) as ask:
        yield reward_rules(recipe, ask)


@contextmanager
def _asking_for_all(section: LLMJudge, run_folder: Path) -> Iterator[Ask]:
    """The LLM judge, asked by the main process about the answers of all."""
    with in_section(LLM_JUDGE, BudgetError, TeacherError), ExitStack() as stack:
        opened: list[Ask] = []
        processes.from_main(lambda: opened.append(stack.enter_context(open_llm_judge(section, LLM_JUDGE, run_folder))))

        def ask(answers: Sequence[GivenAnswer]) -> list[bool | None]:
            distinct = list(dict.fromkeys(one for answers in processes.gather(list(answers)) for one in answers))
            verdicts = processes.from_main(lambda: list(opened[0](distinct))) if distinct else []
            known = dict(zip(distinct, verdicts, strict=True))
            return [known[one] for one in answers]

        yield ask


def reward_rules(recipe: RLRecipe, ask: Ask | None = None) -> VerifiedReward:
    """The recipe's rewards with their weights, in the order in which they are logged.

    Args:
        recipe: The stage's recipe.
        ask: Verdicts on free text that the rules find wrong; None leaves it wrong.

    Raises:
        RecipeError: a function of the user's that can't be used.
    """
    section, accuracy = recipe.rewards, Accuracy(ask)
    rules: dict[str, Rule] = {"accuracy": accuracy, "format": lambda response, row, length: format_reward(response)}
    weights = {"accuracy": section.accuracy, "format": section.format}
    limit, buffer = recipe.max_response_tokens, algorithm_of(recipe.algorithm).overlong_buffer
    if buffer:
        rules["overlong"] = lambda response, row, length: overlong_penalty(length, limit, buffer)
        weights["overlong"] = 1.0
    if section.repetition:
        rules["repetition"] = lambda response, row, length: repetition_penalty(response.text)
        weights["repetition"] = section.repetition
    for name, own in section.custom.items():
        key = f"rewards.custom.{name}"
        if name in OWN_NAMES or not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise RecipeError(f"{key}: {name!r} can't be a reward's name", "take a word of its own: letters, _ and -")
        rules[name] = custom_rule(own.function, find_function(own.function, f"{key}.function"), key)
        weights[name] = own.weight
    return VerifiedReward(rules, weights, accuracy.prepare, by_model=section.llm_judge is not None)
