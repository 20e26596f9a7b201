"""Show the progress of long work: on a terminal a bar with speed and time left, elsewhere a line now and then."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from .console import is_terminal, say

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30.0
LINE = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left"


def track(
    items: Iterable[T], what: str, *, total: int, size: int = 1, done: int = 0, unit: str = "images"
) -> Iterator[T]:
    """Yield the items, and show the progress on standard error, as long as there is one.

    Args:
        what: name of the work, shown before the numbers.
        total: number of units in all.
        size: units per item.
        done: units that were done before the start.
        unit: name of the units.
    """
    shown: dict[str, Any] = {"file": _Bar(), "dynamic_ncols": True}
    if not is_terminal(sys.stderr):
        seconds = SECONDS_BETWEEN_LINES
        shown = {"file": _Lines(), "bar_format": LINE, "mininterval": seconds, "delay": seconds}
    with tqdm(desc=what, total=total, initial=done, unit=f" {unit}", leave=None, **shown) as bar:
        for item in items:
            yield item
            bar.update(min(size, total - bar.n))


class _Bar:
    """Write to a terminal by `say`, which does not fail if the terminal is lost. tqdm asks for the other attributes."""

    def write(self, text: str) -> None:
        say(text, end="")

    def flush(self) -> None:
        """Do nothing: `say` flushes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class _Lines(_Bar):
    """Write to standard error where it is not a terminal: each state of a bar is a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            say(line)
