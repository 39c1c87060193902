"""The errors a user may meet. Each says where, what was found, and (in the hint) what to do.

They are raised in the rooms and caught in two places only: `cli`, which prints them, and the teacher's client,
which retries and then wraps.
"""

from collections.abc import Mapping, Sequence


class PrismError(Exception):
    """A failure with advice: `error:` is the message, `hint:` the cure.

    Code that knows no recipe names a setting by its bare name: `max_usd`, in braces in the hint. What opened it says in
    which section of the recipe that is, and the command line which option sets it.

    Args:
        message: Where, and what was found.
        hint: The command or change that cures it, or None.
        settings: The settings that stand in braces in the hint.

    Attributes:
        cure: Hint and settings as given, for an error that passes them on: `TeacherError(message, *error.cure)`.
        section: The section of the recipe that it is about, or None.
        exit_code: What the process exits with (0 ok, 1 failed, 2 wrong recipe or usage, 3 a budget was reached).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, settings: Sequence[str] = ()):
        super().__init__(message)
        self.cure = hint, tuple(settings)
        self.section: str | None = None

    @property
    def hint(self) -> str | None:
        """The cure, or None; its settings by their keys in the recipe."""
        return self.advice({})

    def advice(self, options: Mapping[str, str]) -> str | None:
        """The hint, with the option of each setting behind its key.

        Args:
            options: A recipe's key → the command line's option that sets it.
        """
        hint, settings = self.cure
        if hint is None:
            return None
        for name in settings:
            key = f"{self.section}.{name}" if self.section else name
            hint = hint.replace(f"{{{name}}}", f"{key} ({options[key]})" if key in options else key)
        return hint

    def add_advice(self, text: str) -> None:
        """Puts more behind the hint."""
        hint, settings = self.cure
        self.cure = f"{hint}; {text}" if hint else text, settings

    def in_section(self, section: str) -> None:
        """Says which section of the recipe it is about; the first that says so is right."""
        if self.section is None:
            self.section = section
            self.args = (f"{section}: {self}",)


class RecipeError(PrismError):
    """Mistake in what the user wrote: recipe, override or option."""

    exit_code = 2


class DataError(PrismError):
    """A data row can't be used; the message names file, row and field."""


class TeacherError(PrismError):
    """The teacher's endpoint failed in a way that retrying will not cure."""


class RewardError(PrismError):
    """A reward can't be computed; what was trained before is kept."""


class BudgetError(PrismError):
    """A stated budget (calls, money) was reached; what was done so far is kept."""

    exit_code = 3


class CheckpointError(PrismError):
    """A run folder or checkpoint is missing, incomplete, or belongs to another recipe."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, with an exit code of its own."""

    exit_code = 143
