"""Errors that a user can fix."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Describe in one sentence something that the caller can fix: what was expected, what was found, what to do.

    The command line prints the sentence and exits with `status`. Other exceptions are mistakes of this package, and
    show their traceback.
    """

    status = 2


class DataError(UserError):
    """Report a folder or a file that cannot be used, with its path."""


class RecipeError(UserError):
    """Report a recipe, section, field, value or run folder that cannot be used."""


class WeightsError(UserError):
    """Report weights that are unknown, missing or damaged."""


class TrainingError(UserError):
    """Report a run that failed, e.g. because its loss or gradients became NaN or infinite."""

    status = 1


class Interrupted(Exception):
    """Report that a run was asked to stop and has saved a checkpoint."""


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Run a command in this context: print an error that the user can fix as one sentence, without a traceback.

    The command exits with the status of the error: 2 for most errors, 130 when it was stopped. SIGTERM stops the
    command as Ctrl-C does, so that half-written files are removed. With SCOTT_DEBUG=1 in the environment the traceback
    is printed too.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (UserError, OSError) as error:
        if os.environ.get("SCOTT_DEBUG", "0") != "0":
            traceback.print_exception(error)
        print(f"scott: {error}", file=sys.stderr)
        sys.exit(error.status if isinstance(error, UserError) else 2)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"scott: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: the handler was not set by Python


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import an optional package in this context: if it is missing, name the extra that installs it.

    Raises:
        UserError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected the package {error.name}, found it is not installed; pip install 'scott_models[{extra}]'"
        ) from error
