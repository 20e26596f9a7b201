"""Keep two runs from writing into one run folder at the same time."""

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..console import say
from ..errors import DataError, RecipeError, UserError, WritingError, describe_system_error, needs_extra
from ..writing import write_text_whole
from .processes import agree, join

LOCK, HOLDER = ".lock", ".holder"  # the second file says who holds the first, which some systems let nobody else read
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Hold a run folder in this context, and refuse a second run in this folder.

    The folder is created if necessary. A new folder that is still empty at the end is removed. The first of a
    launcher's processes holds the folder for all of them. The lock of a process that was killed ends with the process.

    Raises:
        DataError: the folder cannot be created or written to.
        RecipeError: another run holds the folder.
    """
    with ExitStack() as held:
        refused = None
        if join().is_main_process:
            try:
                held.enter_context(_lock(out))
            except UserError as error:
                refused = error
        if refused := agree(refused):  # so that no process waits for one that has left
            raise refused
        yield


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    with needs_extra("train"):
        from filelock import FileLock, Timeout
    lock, new = FileLock(out / LOCK), not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RecipeError(
            f"{out}: expected no other run in this folder, found one of {_read_holder(out)}; wait for it or choose "
            "another --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            reason = describe_system_error(error)
            raise DataError(f"{out}: expected a folder to write to ({reason}); choose another --out") from error
        say(f"note: {out}: this disk has no locks ({error}), so a second run in this folder would not be noticed")
    try:
        with suppress(WritingError):  # a full disk, which the run will report
            write_text_whole(out / HOLDER, _describe_process())
        yield
    finally:
        with suppress(OSError):
            (out / HOLDER).unlink(missing_ok=True)
            (out / LOCK).unlink(missing_ok=True)
            if new:
                out.rmdir()  # an error if the run wrote anything
        lock.release()


def _describe_process() -> str:
    return f"process {os.getpid()} on host {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"


def _read_holder(out: Path) -> str:
    try:
        return (out / HOLDER).read_text(encoding="utf-8", errors="replace")
    except OSError:  # the other process has not written it yet
        return "another process"
