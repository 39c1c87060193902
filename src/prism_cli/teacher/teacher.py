"""A teacher as a value: a live one behind an endpoint, or answers recorded in the data."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Self

from prism_cli.endpoint.endpoint import Endpoint
from prism_cli.endpoint.store import AnswerStore
from prism_cli.errors import RecipeError
from prism_cli.responses import Grammar
from prism_cli.teacher.prompting import Example, Prompting, example_messages, taught_grammar


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher that is asked through an endpoint.

    Attributes:
        endpoint: Where.
        description: The teacher and where it is, for a plan.
        sees: Whether it is sent pictures; else their captions.
        check: Whether it is probed before the first question.
        max_failed: Largest share of rows it may fail on.
        from_parts: Whether its system message is written from the parts it teaches.
        instruction: Its system message where it is not; None takes the policy's.
        examples: Worked examples put before each question.
        world: The picture world whose pictures it reads, or None for any picture.
        kept_only: Whether only kept answers are read, so that the endpoint needs no URL.
        serve: Makes the app to serve while it is asked, of the grammar it writes; None where it runs elsewhere.
    """

    endpoint: Endpoint
    description: str
    sees: bool = True
    check: bool = True
    max_failed: float = 0.05
    from_parts: bool = True
    instruction: str | None = None
    examples: tuple[Example, ...] = ()
    world: str | None = None
    kept_only: bool = False
    serve: Callable[[Grammar], Any] | None = None

    @property
    def can_answer(self) -> bool:
        """Whether there is an endpoint to ask, or kept answers are all that is wanted."""
        return self.kept_only or self.endpoint.url is not None

    def by_captions(self) -> Self:
        """The same, asked by captions alone and not probed."""
        # One that reads rows as they are must not be told to write what only a picture shows.
        from_parts = self.from_parts or self.serve is not None
        return replace(self, sees=False, check=False, from_parts=from_parts)

    def prompting(self, grammar: Grammar, policy_instruction: str | None) -> Prompting:
        """Prompts for a policy's parts.

        Args:
            grammar: The policy's parts.
            policy_instruction: The policy's instruction, as it stands before the rows' turns.

        Raises:
            RecipeError: no part is left for one that sees no picture, or an example lacks a tag.
        """
        taught = taught_grammar(grammar, self.sees)
        # Parts without tags ask for nothing, and then the policy's own instruction says what there is to say.
        own = taught.instruction() if self.from_parts else self.instruction
        system = policy_instruction if own is None else own
        return Prompting(taught, policy_instruction, system, example_messages(self.examples, taught), self.sees)

    def by_its_store(self) -> Self:
        """The same where it has an endpoint; else the teacher whose answers are kept in its store, if there is one.

        Raises:
            RecipeError: the store has answers of several teachers, or of none.
        """
        endpoint, store = self.endpoint, self.endpoint.store
        if self.can_answer or store is None or not store.is_file():
            return self
        with closing(AnswerStore(store)) as answers:
            known = {(totals.teacher, totals.model) for totals in answers.summary()}
        matching = [one for one in known if endpoint.name in (None, one[0]) and endpoint.model in (None, one[1])]
        if len(matching) != 1:
            there = ", ".join(sorted(f"{name} (model {model})" for name, model in known)) or "none"
            raise RecipeError(
                f"the store {store} doesn't tell which teacher is meant",
                f"name it in {{model}}; there are: {there}",
                ("model",),
            )
        ((name, model),) = matching
        description = f"kept answers of {name} (model {model}) in {store}"
        endpoint = endpoint._replace(name=name, model=model)
        return replace(self, endpoint=endpoint, description=description, check=False, kept_only=True)


@dataclass(frozen=True)
class RecordedTeacher:
    """A teacher whose answers stand in the data already, in the column `teacher_response`."""

    description: str = "answers from the data's teacher_response column"
    can_answer: bool = True

    def by_its_store(self) -> Self:
        """The same: its answers are in the data."""
        return self

    def prompting(self, grammar: Grammar, policy_instruction: str | None) -> Prompting:
        """Prompts it would have had; its answers have all of the policy's parts."""
        return Prompting(grammar, policy_instruction, policy_instruction)


AnyTeacher = LiveTeacher | RecordedTeacher
