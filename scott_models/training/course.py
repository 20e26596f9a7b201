"""Place each update of a run on the schedules, for a run that goes on as planned and for one that is ended early."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from .schedules import warmup_flat_cosine


@dataclass(frozen=True)
class Course:
    """Describe the updates of a run, numbered from 1 to `total`.

    A finish ends the run earlier or later than planned: it runs through the rest of the schedules in `finish_updates`
    updates.

    Args:
        planned: number of updates by the recipe's epochs.
        finish_after: the update after which the finish begins.
        finish_updates: number of updates of the finish; 0: no finish, the run goes on as planned.
    """

    planned: int
    finish_after: int = 0
    finish_updates: int = 0

    @property
    def total(self) -> int:
        """Return the number of updates, a finish included."""
        return self.finish_after + self.finish_updates if self.finish_updates else self.planned

    def place(self, step: int) -> float:
        """Return the place of update `step` among the planned updates, 1 to `planned`.

        During a finish, the place advances evenly from `finish_after` to `planned`.
        """
        if not self.finish_updates or step <= self.finish_after:
            return step
        return self.finish_after + (self.planned - self.finish_after) * self._share(step)

    def lr(self, step: int, *, warmup: int, start: float, peak: float, final: float, flat: float) -> float:
        """Compute the learning rate of update `step`.

        Before a finish it follows `warmup_flat_cosine`, whose arguments it takes. During a finish it falls from its
        level at `finish_after` by half a cosine to `final`.
        """
        ending = self.finish_updates > 0 and step > self.finish_after
        level = warmup_flat_cosine(
            self.finish_after if ending else step,
            total=self.planned,
            warmup=warmup,
            start=start,
            peak=peak,
            final=final,
            flat=flat,
        )
        if not ending:
            return level
        return final + (level - final) * (1 + math.cos(math.pi * self._share(step))) / 2

    def _share(self, step: int) -> float:
        """Return the share of the finish that has passed after update `step`, 0 to 1."""
        return (step - self.finish_after) / self.finish_updates

    def sizes(self, first: int, small: int, share: float, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first update, last update, pixels) for each image size, from update `first` on.

        Args:
            small: image size in pixels during the first `share` of the planned updates; 0: `size` throughout.
            size: image size in pixels of the other updates.
        """
        switch = self.last_small(share) if small else 0
        for begin, end, pixels in ((first, switch, small), (max(first, switch + 1), self.total, size)):
            if begin <= end:
                yield begin, end, pixels

    def last_small(self, share: float) -> int:
        """Return the last update whose place lies in the first `share` of the planned updates, 0 to `total`."""
        return bisect_right(range(self.total + 1), float(int(share * self.planned)), key=self.place) - 1
