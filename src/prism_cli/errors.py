"""The errors a user may meet. Each says where, what was found, and (in the hint) what to do.

They are raised in the rooms and caught in two places only: `cli`, which prints them, and the teacher's client,
which retries and then wraps.
"""


class PrismError(Exception):
    """A failure with advice: `error:` is the message, `hint:` the cure.

    Attributes:
        hint: The command or change that cures it, or None.
        exit_code: What the process exits with (0 ok, 1 failed, 2 wrong recipe or usage, 3 a budget was reached).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint


class RecipeError(PrismError):
    """What the user wrote (recipe, override or option) is wrong."""

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
