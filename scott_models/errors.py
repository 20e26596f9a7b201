"""The errors a user can mend."""


class UserError(ValueError):
    """Something the caller can put right, told in one sentence: expected, found, what to do.

    The command line prints it and exits with status 2; anything else is our mistake and shows its traceback.
    """


class DataError(UserError):
    """A folder or a file that cannot be used, with its path."""


class RecipeError(UserError):
    """A recipe, section, field, value or run folder that does not fit."""


class WeightsError(UserError):
    """Weights that are unknown, absent or damaged."""


class Interrupted(Exception):
    """The run was asked to stop, and saved itself."""
