"""The `scott` command in this process, as a user types it: importing torch anew for each call takes seconds."""

import io
from contextlib import redirect_stderr, redirect_stdout

from scott_models import cli


def scott(*arguments, status=0):
    """Run a command that must leave with that status; return what it prints, or what it complains about."""
    output, errors, left_with = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as exited:
            left_with = exited.code or 0
    assert left_with == status, errors.getvalue()
    return errors.getvalue() if status else output.getvalue()
