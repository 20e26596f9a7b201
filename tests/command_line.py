"""Run the `scott` command in this process: a new process per call would import torch again, which takes seconds."""

import io
from contextlib import redirect_stderr, redirect_stdout

from scott_models import cli


def scott(*arguments, status=0):
    """Run a command that must exit with `status`; return its standard output, or its standard error if it fails."""
    output, errors, exit_status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as exited:
            exit_status = exited.code or 0
    assert exit_status == status, errors.getvalue()
    return errors.getvalue() if status else output.getvalue()
