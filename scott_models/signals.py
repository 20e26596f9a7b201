"""Handle the signals that ask a process to stop: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal or a lost connection.

Only Python's main thread may set handlers. Elsewhere, e.g. in a web server's thread, work goes on without them.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .console import say_from_handler

HANG_UP: int | None = getattr(signal, "SIGHUP", None)  # Windows has no such signal
STOPS: list[int] = [signal.SIGINT, signal.SIGTERM, *([HANG_UP] if HANG_UP else [])]


def handle_signals(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Callable[[], None]:
    """Let a function handle signals; return a function that restores the handlers before it.

    A SIGHUP that is ignored, as `nohup` asks for, stays ignored. In a thread other than the main one do nothing.
    """
    before: dict[int, Any] = {}
    with suppress(ValueError):  # not the main thread
        for number in numbers:
            former = signal.getsignal(number)
            if number == HANG_UP and former is signal.SIG_IGN:
                continue
            signal.signal(number, handler)
            before[number] = signal.SIG_DFL if former is None else former  # None: it was not set by Python

    def restore() -> None:
        for number, former in before.items():
            signal.signal(number, former)

    return restore


def ignore_hang_up() -> None:
    """Ignore SIGHUP from now on: a terminal that closes may send several, and only the first one is a request."""
    if HANG_UP:
        signal.signal(HANG_UP, signal.SIG_IGN)


def leave_to_parent() -> None:
    """Ignore Ctrl-C and SIGHUP in a worker process: both reach the whole group, and the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_hang_up()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after the first Ctrl-C, SIGTERM or SIGHUP, which does not kill the process.

    The next signal is handled as it was before; but no SIGHUP ends a run that is saving.
    """
    requests: list[int] = []
    restore: Callable[[], None] = lambda: None  # noqa: E731 -- for a signal that comes before all handlers are set

    def handle(number: int, frame: object) -> None:
        requests.append(number)
        restore()
        ignore_hang_up()
        say_from_handler("stopping soon and saving; a second signal stops at once")

    restore = handle_signals(STOPS, handle)
    try:
        yield lambda: bool(requests)
    finally:
        restore()
