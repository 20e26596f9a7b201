"""Progress on anything long: a bar with speed and time left on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30.0
LINE = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left"


def track(
    items: Iterable[T], what: str, *, total: int, size: int = 1, done: int = 0, unit: str = "images"
) -> Iterator[T]:
    """Yield the items while showing on standard error how far they are.

    Args:
        what: is done with the items.
        total: units altogether.
        size: units an item counts for.
        done: units behind us at the start.
    """
    shown: dict[str, Any] = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        seconds = SECONDS_BETWEEN_LINES
        shown = {"file": _Lines(), "bar_format": LINE, "mininterval": seconds, "delay": seconds}
    with tqdm(desc=what, total=total, initial=done, unit=f" {unit}", leave=None, **shown) as bar:
        for item in items:
            yield item
            bar.update(min(size, total - bar.n))


class _Lines:
    """Standard error where nobody can erase a line: each state of a bar is a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Do nothing: each line is flushed as it is written."""
