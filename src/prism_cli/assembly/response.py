"""The grammar and the instruction a stage works with: from its recipe's `response` section, or from an earlier run."""

import json

from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.recipes.sections import ResponseSection
from prism_cli.recipes.stages import CollectRecipe, DriftRecipe, EvalRecipe, Stage
from prism_cli.responses import Grammar, Part, ResponseSettings, read_settings
from prism_cli.runs.references import resolve_model

FROM_PARTS = "from parts"

# Recipes of the stages in which a policy responds.
RespondingRecipe = Stage | CollectRecipe | EvalRecipe | DriftRecipe


def grammar_of(section: ResponseSection) -> Grammar:
    """The grammar a recipe declares.

    Raises:
        RecipeError: parts that can't stand together.
    """
    try:
        return Grammar({name: Part(part.tags, part.weight) for name, part in section.parts.items()}, section.answer)
    except ValueError as error:
        raise RecipeError(f"response: {error}", "see docs/recipes.md, section response") from None


def instruction_of(section: ResponseSection, grammar: Grammar) -> str | None:
    """The system prompt, or None."""
    return grammar.instruction() if section.instruction == FROM_PARTS else section.instruction


def grammar_ahead(recipe: RespondingRecipe) -> Grammar | None:
    """The grammar of a stage's policy, or None where the run it starts from has none to read yet."""
    try:
        return response_settings(recipe).grammar
    except CheckpointError:
        return None


def response_settings(recipe: RespondingRecipe) -> ResponseSettings:
    """Grammar and instruction of a stage's policy, without loading it; of several runs the first one's.

    Raises:
        CheckpointError: the run it starts from has no model yet, or its response.json can't be read.
        RecipeError: parts that can't stand together.
    """
    if isinstance(recipe, EvalRecipe | DriftRecipe):
        return run_settings(recipe.runs[0])
    if recipe.from_ is not None:
        return run_settings(recipe.from_)
    return section_settings(recipe.response or ResponseSection())


def section_settings(section: ResponseSection) -> ResponseSettings:
    """The grammar and instruction that a section declares.

    Raises:
        RecipeError: parts that can't stand together.
    """
    grammar = grammar_of(section)
    return ResponseSettings(grammar, instruction_of(section, grammar))


def run_settings(reference: str) -> ResponseSettings:
    """Grammar and instruction of the policy of a run, or of `RUN@step`.

    Raises:
        CheckpointError: it has no model yet, or its response.json can't be read.
    """
    path = resolve_model(reference)[0] / "response.json"
    try:
        return read_settings(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} can't be read: {error}", "name a finished run") from None


def run_grammar(reference: str) -> Grammar | None:
    """The grammar of a run's policy, or None where the run has none to read yet."""
    try:
        return run_settings(reference).grammar
    except CheckpointError:
        return None
