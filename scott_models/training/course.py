"""How far along its schedules each update of a run is: as planned, or brought to an end before that."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from .schedules import warmup_flat_cosine


@dataclass(frozen=True)
class Course:
    """The updates of a run, from 1 to `total`.

    Args:
        planned: updates by the recipe's epochs.
        finish_after: the update after which the run is brought to its end.
        finish_updates: how many it has from there; 0: it goes on as planned.
    """

    planned: int
    finish_after: int = 0
    finish_updates: int = 0

    @property
    def total(self) -> int:
        return self.finish_after + self.finish_updates if self.finish_updates else self.planned

    def place(self, step: int) -> float:
        """Tell where update `step` is among the planned ones, of which a finish runs through the rest at its pace."""
        if not self.finish_updates or step <= self.finish_after:
            return step
        return self.finish_after + (self.planned - self.finish_after) * self._share(step)

    def lr(self, step: int, *, warmup: int, start: float, peak: float, final: float, flat: float) -> float:
        """Compute the learning rate as `warmup_flat_cosine` does; from the finish on by a cosine to `final` at once."""
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
        """Tell how much of the finish has passed after update `step`, 0 to 1."""
        return (step - self.finish_after) / self.finish_updates

    def sizes(self, first: int, small: int, share: float, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first update, last update, pixels) of each size of images that updates from `first` on see.

        Args:
            small: pixels of the first `share` of the planned updates; 0: there are none.
            size: pixels of the others.
        """
        switch = self.last_small(share) if small else 0
        for begin, end, pixels in ((first, switch, small), (max(first, switch + 1), self.total, size)):
            if begin <= end:
                yield begin, end, pixels

    def last_small(self, share: float) -> int:
        """Tell the last update that lies in the first `share` of the planned ones."""
        return bisect_right(range(self.total + 1), float(int(share * self.planned)), key=self.place) - 1
