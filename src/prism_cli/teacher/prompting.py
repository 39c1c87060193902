"""Prompting: how a row is put to a teacher, with which instruction, examples, pictures or caption."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prism_cli.endpoint.pictures import image_bytes
from prism_cli.endpoint.requests import EndpointRequest
from prism_cli.errors import RecipeError
from prism_cli.responses import Grammar

PERCEPTION = "perception"
_SHOWS, _BREAK = "The picture shows: ", "\n\n"


class Example(NamedTuple):
    """A worked example that a teacher is shown before the question.

    Attributes:
        question: What is asked.
        blocks: Tag → the block's text.
    """

    question: str
    blocks: Mapping[str, str]


class Prompting(NamedTuple):
    """Turns rows into requests.

    Attributes:
        grammar: The parts this teacher writes.
        policy_instruction: The system message that rows have for the policy's sake.
        system: The system message in its place; a row's own one stays.
        examples: Worked examples as messages, put before a row's turns.
        sees: Whether pictures are sent; else their caption, where a row has one.
    """

    grammar: Grammar
    policy_instruction: str | None = None
    system: str | None = None
    examples: tuple[dict[str, str], ...] = ()
    sees: bool = True

    def request(self, row: Mapping[str, Any], sample: int = 0) -> EndpointRequest:
        """The question of a row: `prompt` (messages), `images` ({"bytes", "path"}), `caption`, `id`."""
        system, turns = self._split(row["prompt"])
        before = [{"role": "system", "content": system}] if system else []
        messages = [*before, *self.examples, *turns]
        first = next(i for i, message in enumerate(turns) if message["role"] == "user") + len(messages) - len(turns)
        if not self.sees:
            if caption := row.get("caption"):
                messages[first] = {**messages[first], "content": with_caption(caption, messages[first]["content"])}
            return EndpointRequest(messages, sample=sample, row=row["id"])
        images = tuple(image_bytes(image) for image in row["images"])
        return EndpointRequest(messages, images, sample=sample, row=row["id"], images_at=first)

    def problem(self, text: str) -> str | None:
        """Mistake in an answer's form, or None."""
        return self.grammar.parse(text).problem

    def _split(self, prompt: list[dict[str, str]]) -> tuple[str | None, list[dict[str, str]]]:
        messages = [{"role": message["role"], "content": message["content"]} for message in prompt]
        if messages[0]["role"] != "system":
            return self.system, messages
        own, *turns = messages
        return (self.system if own["content"] == self.policy_instruction else own["content"]), turns


def taught_grammar(grammar: Grammar, sees: bool) -> Grammar:
    """The parts a teacher writes: all of the policy's, but perception if it sees no picture.

    Raises:
        RecipeError: nothing is left.
    """
    if sees:
        return grammar
    try:
        return grammar.without(PERCEPTION)
    except ValueError:
        raise RecipeError(
            "modality is text and perception is the only part, so it has nothing to teach",
            "declare a part that needs no picture, or take a teacher that sees",
        ) from None


def example_messages(examples: Sequence[Example], grammar: Grammar) -> tuple[dict[str, str], ...]:
    """Worked examples as turns, in the form of the grammar.

    Raises:
        RecipeError: an example's tags are not the grammar's, or a block is empty.
    """
    turns = []
    for number, example in enumerate(examples):
        if set(example.blocks) != set(grammar.tags):
            raise RecipeError(
                f"examples.{number}.response has {', '.join(sorted(example.blocks)) or 'no tags'}",
                f"give exactly the teacher's tags: {', '.join(grammar.tags) or 'none, so leave out the examples'}",
            )
        text = grammar.render(example.blocks)
        if problem := grammar.parse(text).problem:
            raise RecipeError(f"examples.{number}.response: {problem}", "write every block out")
        turns += [{"role": "user", "content": example.question}, {"role": "assistant", "content": text}]
    return tuple(turns)


def with_caption(caption: str, question: str) -> str:
    """The question to one who can't see the picture."""
    return f"{_SHOWS}{caption}{_BREAK}{question}"


def split_caption(text: str) -> tuple[str | None, str]:
    """The caption (None if there is none) and the question of a text from `with_caption`."""
    if not text.startswith(_SHOWS) or _BREAK not in text:
        return None, text
    caption, _, question = text.removeprefix(_SHOWS).partition(_BREAK)
    return caption, question
