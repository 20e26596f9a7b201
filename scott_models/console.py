"""Write to a console that may be absent or lost: the work goes on without it.

Notes go to standard error by `say`, which never fails. Results go to standard output by `show`, which fails only where
the result should have been kept, e.g. in a file on a full disk.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

LOST = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET}  # the pipe, the terminal or the stream is closed
LOST |= {errno.EINVAL} if os.name == "nt" else set()  # what Windows says of a closed pipe
OUTPUT = "standard output"
PASSING = {errno.EAGAIN, errno.ENOSPC, errno.EDQUOT}  # a busy terminal, a full disk: there may be room for later notes


def say(text: str, end: str = "\n") -> None:
    """Print a note on standard error. Without a standard error, or if nobody reads it any more, do nothing."""
    if sys.stderr is None:  # as in daemons, and in pythonw on Windows
        return
    try:
        _print(text, end, sys.stderr)
    except ValueError:  # the stream was closed
        return
    except OSError as error:
        if error.errno not in PASSING:
            silence(sys.stderr)


def say_from_handler(text: str) -> None:
    """Print a note on standard error from a signal handler, where `print` is unsafe."""
    with suppress(OSError, ValueError, AttributeError):  # AttributeError: there is no standard error
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


def show(text: str, end: str = "\n") -> None:
    """Print a result on standard output. Without a reader, e.g. after `head` has read enough, do nothing.

    Raises:
        OSError: standard output cannot be written for another reason, e.g. it is a file on a full disk.
    """
    if sys.stdout is sys.stderr:  # where `--json` sends all but the result
        say(text, end)
    if sys.stdout in (None, sys.stderr):
        return
    try:
        _print(text, end, sys.stdout)
    except ValueError:  # the stream was closed
        return
    except OSError as error:
        silence(sys.stdout)
        if error.errno not in LOST:
            raise OSError(error.errno, error.strerror, OUTPUT) from None


def _print(text: str, end: str, stream: TextIO) -> None:
    """Print a text at once; write characters that the stream's encoding lacks as escapes."""
    try:
        print(text, end=end, file=stream, flush=True)
    except UnicodeEncodeError as error:
        encoding = getattr(stream, "encoding", None) or error.encoding
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Return True if a stream is a terminal; False also if the stream is absent or closed."""
    with suppress(OSError, ValueError):
        return stream is not None and stream.isatty()
    return False


def silence(stream: TextIO) -> None:
    """Send the unwritten text of a stream, and all that follows, nowhere, so that Python ends without an error."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Lossy(io.FileIO):
    """Write to the file of a standard stream. It is no error if nobody reads any more: libraries print as well."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self.stream, self.is_notes = stream, name == "stderr"  # the stream is kept: it would close its file

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in LOST or self.is_notes:
                return len(data)
            raise OSError(error.errno, error.strerror, OUTPUT) from None


@contextmanager
def open_streams() -> Iterator[None]:
    """Run a command in this context, which goes on if a standard stream is absent or lost.

    Characters that a stream's encoding lacks are written as escapes. At the end the streams are flushed, because Python
    itself would end with another status where it cannot flush them.

    Raises:
        OSError: as `show`.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get this number, and what is meant for the stream
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        setattr(sys, name, _make_lossy(getattr(sys, name), name))
    try:
        try:
            yield
        except SystemExit as end:  # for example after --help
            if not end.code:
                show("", end="")
            raise
        show("", end="")
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                silence(stream)


def _make_lossy(stream: TextIO | None, name: str) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # open until the process ends
    with suppress(OSError, ValueError):  # the stream is lost or closed already
        stream.flush()
    with suppress(OSError, ValueError):
        if isinstance(stream, io.TextIOWrapper):
            if type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:  # Windows' console has another class
                by_line = bool(stream.line_buffering or stream.write_through)
                file = io.BufferedWriter(_Lossy(stream, name))
                stream = io.TextIOWrapper(file, stream.encoding, line_buffering=by_line)
            stream.reconfigure(errors="backslashreplace")
    return stream
