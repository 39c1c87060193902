"""From a recipe's `response` section to the grammar and the instruction."""

from prism_cli.errors import RecipeError
from prism_cli.recipes.sections import ResponseSection
from prism_cli.responses import Grammar, Part

FROM_PARTS = "from parts"


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
