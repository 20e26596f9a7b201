"""Share between the steps of a reproduction: rows, the time left, what failed, and processes that end in time."""

import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from collect import collect, pack
from rows import Row, Step

from scott_models.probes.evaluate import Kind

MARGIN = 20  # seconds that saving and the first small files take
STOPPED = (0, 130, -signal.SIGINT)


class Clock:
    """Count what is left of the time."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.longest = 0.0  # seconds of a step so far

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def allows_another(self) -> bool:
        """Tell whether a step as long as the longest so far would end in time."""
        return self.left > max(self.longest, MARGIN)

    def say(self, what: str) -> None:
        print(f"== {what}; {self.left / 60:.1f} minutes left", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self.say(what)
        started = time.monotonic()
        yield
        self.longest = max(self.longest, time.monotonic() - started)


@dataclass
class Session:
    """Hold what all steps share.

    Attributes:
        seeds: of the probes.
        failed: what went wrong so far, in words.
    """

    rows: list[Row]
    flowers: Path
    out: Path
    clock: Clock
    seeds: int
    kinds: Sequence[Kind]
    steps: Sequence[Step]
    packed: bool
    options: list[str]
    failed: list[str] = field(default_factory=list)

    def leave(self, row: Row) -> None:
        """Write the small files of a row that is trained."""
        with self.going_on(f"{row.name}: small files"):
            (pack if self.packed else collect)(row, self.out)

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Report whatever goes wrong inside, and let what comes after it run."""
        try:
            yield
        except Exception as error:  # of any kind: the other rows are worth no less for it
            traceback.print_exc()
            print(f"{what} failed ({type(error).__name__}: {error}); going on", file=sys.stderr, flush=True)
            self.failed.append(what)


def run_until(command: Sequence[str], seconds: float) -> int:
    """Run a command that saves itself when interrupted; interrupt it when its time, or ours, is over.

    Returns:
        its status; that of SIGKILL if it did not end soon after.
    """
    with subprocess.Popen(command) as process:
        try:
            return process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            return end(process)
        except KeyboardInterrupt:
            end(process)
            raise


def end(process: subprocess.Popen) -> int:
    """Interrupt a process, and kill it if it has not saved itself soon; returns its status."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(MARGIN)
    process.kill()
    return process.wait()
