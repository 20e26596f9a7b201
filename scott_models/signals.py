"""Handle the signals that ask a process to stop: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal or a lost connection.

Only Python's main thread may set handlers. Elsewhere, e.g. in a web server's thread, work goes on without them.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

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
