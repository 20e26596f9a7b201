"""The errors a user can mend."""

from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around the import of an optional package: say which of our extras installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"this needs {error.name}, found it is not installed: pip install 'scott_models[{extra}]'"
        ) from error
