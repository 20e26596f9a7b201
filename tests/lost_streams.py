"""Streams that nobody reads."""

import io
import os
import pty

import pytest

from scott_models import console

KINDS = ["absent", "closed", "pipe", "terminal"]


@pytest.fixture(params=KINDS)
def lost(request):
    """Open a stream to nobody: no stream at all, a closed one, a pipe without a reader, or a terminal that is gone."""
    if request.param == "absent":
        yield None
    elif request.param == "closed":
        stream = io.StringIO()
        stream.close()
        yield stream
    else:
        reader, writer = os.pipe() if request.param == "pipe" else pty.openpty()
        os.close(reader)
        stream = open(writer, "w")  # noqa: SIM115 -- it cannot be closed while it holds unwritten text
        yield stream
        console.silence(stream)
        stream.close()
