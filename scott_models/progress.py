"""Progress on anything long: a bar with speed and time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30


def track(
    items: Iterable[T], what: str, *, total: int, size: int = 1, done: int = 0, unit: str = "images"
) -> Iterator[T]:
    """Yield the items while showing how far they are, on standard error.

    Args:
        total: units altogether; `size`: units an item counts for; `done`: units behind us at the start.
    """
    show = _bar if sys.stderr.isatty() and find_spec("rich") else _lines  # training must do without rich
    return show(iter(items), what, total, size, done, unit)


def _bar(items: Iterator[T], what: str, total: int, size: int, done: int, unit: str) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(), speed_estimate_period=120) as progress:
        task = progress.add_task(what, total=total, completed=done, speed="")
        for item in items:
            yield item
            speed = progress.tasks[task].speed
            done = min(done + size, total)
            progress.update(task, completed=done, speed=f"{speed:.1f} {unit}/s" if speed else "")


@cache
def _console() -> Any:
    """One for all bars: those of one console stand below each other, those of two overwrite each other."""
    from rich.console import Console

    return Console(stderr=True)


def _lines(items: Iterator[T], what: str, total: int, size: int, done: int, unit: str) -> Iterator[T]:
    start = last = time.monotonic()
    first = done
    for item in items:
        yield item
        done = min(done + size, total)
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            speed = (done - first) / (now - start)
            left = (total - done) / speed / 60
            print(
                f"{what}: {done}/{total} {unit}, {speed:.1f} {unit}/s, {left:.0f} min left", file=sys.stderr, flush=True
            )
