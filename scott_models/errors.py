"""Errors that a user can fix."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .console import open_streams, say
from .signals import STOPS, handle_signals, ignore_hang_up

FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk, or the user's share of it
TOO_MANY_OPEN = {errno.EMFILE, errno.ENFILE}


class UserError(ValueError):
    """Describe in one sentence something that the caller can fix: what was expected, what was found, what to do.

    The command line prints the sentence and exits with `status`. Other exceptions are mistakes of this package, and
    show their traceback.
    """

    status = 2


class DataError(UserError):
    """Report a folder or a file that cannot be used, with its path."""


class WritingError(DataError):
    """Report a file that cannot be written."""


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

    The command exits with the status of the error: 2 for most errors, 130 when it was stopped. SIGTERM, a closed
    terminal and a lost connection stop the command as Ctrl-C does, so that half-written files are removed. With
    SCOTT_DEBUG=1 in the environment the traceback is printed too. The standard streams may be absent or lost.
    """

    def stop(number: int, frame: object) -> None:
        ignore_hang_up()
        raise KeyboardInterrupt

    restore = handle_signals(STOPS[1:], stop)  # Ctrl-C raises KeyboardInterrupt without a handler of ours
    try:
        with open_streams():
            yield
    except (UserError, OSError) as error:
        if os.environ.get("SCOTT_DEBUG", "0") != "0":
            say("".join(traceback.format_exception(error)), end="")
        say(f"scott: {error if isinstance(error, UserError) else describe_system_error(error)}")
        sys.exit(error.status if isinstance(error, UserError) else 2)
    except (Interrupted, KeyboardInterrupt) as end:
        say(f"scott: {str(end) or 'stopped'}")
        sys.exit(130)
    finally:
        restore()


def describe_system_error(error: OSError) -> str:
    """Return the files and the reason that an error of the operating system names, e.g. "a.npz: Is a directory"."""
    files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
    text = ": ".join(filter(None, [files, error.strerror or str(error)]))
    return f"{text}; {advice}" if (advice := advise(error)) else text


def advise(error: OSError) -> str:
    """Return what to do about an error of the operating system; "" if its reason alone does not tell."""
    if error.errno in FULL:
        return "make room"
    return "allow more open files, e.g. by `ulimit -n 4096`" if error.errno in TOO_MANY_OPEN else ""


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
