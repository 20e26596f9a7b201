"""The shared state of a reproduction: rows, the time left, failures, and processes that end in time."""

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

MARGIN = 20  # seconds for saving and for the first small files
STOPPED = (0, 130, -signal.SIGINT)


class Clock:
    """Measure the time that is left."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.longest = 0.0  # seconds of the longest step so far

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def allows_another(self) -> bool:
        """Return True if a step as long as the longest step so far would end in time."""
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
    """Hold the settings and the failures that all steps share.

    Attributes:
        seeds: the number of seeds of the probes.
        packed: whether results are written by `pack` instead of `collect`.
        options: the arguments of reproduce.py, for further processes.
        failed: the failures so far, in words.
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
        """Write the results of a trained row."""
        with self.going_on(f"{row.name}: small files"):
            (pack if self.packed else collect)(row, self.out)

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Report an error inside the context, and let later work run."""
        try:
            yield
        except Exception as error:  # any error: the other rows are still worth running
            traceback.print_exc()
            print(f"{what} failed ({type(error).__name__}: {error}); going on", file=sys.stderr, flush=True)
            self.failed.append(what)


def run_until(command: Sequence[str], seconds: float) -> int:
    """Run a command that saves its state when interrupted, and interrupt the command after some seconds or on Ctrl-C.

    Returns:
        the exit status; that of SIGKILL if the process did not end soon after the interrupt.
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
    """Interrupt a process and return its exit status; kill the process if it has not ended after MARGIN seconds."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(MARGIN)
    process.kill()
    return process.wait()
