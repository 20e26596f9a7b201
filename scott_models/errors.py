"""The errors a user can mend."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the caller can put right, told in one sentence: expected, found, what to do.

    The command line prints it and exits with its status; anything else is our mistake and shows its traceback.
    """

    status = 2


class DataError(UserError):
    """A folder or a file that cannot be used, with its path."""


class RecipeError(UserError):
    """A recipe, section, field, value or run folder that does not fit."""


class WeightsError(UserError):
    """Weights that are unknown, absent or damaged."""


class TrainingError(UserError):
    """A run that went wrong: its loss or gradients are no numbers any more."""

    status = 1


class Interrupted(Exception):
    """The run was asked to stop, and saved itself."""


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Around a command: what the user can mend is one sentence and its exit status, mostly 2, a stop 130; no traceback.

    SIGTERM stops as Ctrl-C does, so that whatever is half-written is removed.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (UserError, OSError) as error:
        print(f"scott: {error}", file=sys.stderr)
        sys.exit(error.status if isinstance(error, UserError) else 2)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"scott: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not set by Python


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around the import of an optional package: say which of our extras installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"this needs {error.name}, found it is not installed: pip install 'scott_models[{extra}]'"
        ) from error
