"""Fit a run to a budget of time, images or epochs.

`Budget.fit` chooses the epochs before the first update, and all schedules follow from the epochs. `Budget.finish`
chooses how many more updates a run under way gets until it ends.
"""

import math
import time
from dataclasses import dataclass
from typing import TypeVar

from ..console import say
from ..data.order import Order
from ..errors import RecipeError
from .settings import Settings

S = TypeVar("S", bound=Settings)
RESERVE = 0.02  # share of the time that is left for checkpoints and the export


@dataclass(frozen=True)
class Budget:
    """Hold the limit of a run: minutes from its start, images to see, or epochs. Exactly one of the three is given.

    Raises:
        RecipeError: none or several of the three are given, or the given one is not above 0 or not finite.
    """

    minutes: float | None = None
    images_seen: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.minutes, self.images_seen, self.epochs) if value is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise RecipeError(
                "budget: expected minutes, images_seen or epochs, one of them and above 0, "
                f"got {self.minutes}, {self.images_seen} and {self.epochs}"
            )

    @classmethod
    def of(cls, minutes: float | None, images_seen: int | None, epochs: float | None = None) -> "Budget | None":
        """Return the budget of the given limit, or None if all three are None."""
        given = minutes, images_seen, epochs
        return None if given == (None, None, None) else cls(*given)

    def fit(self, recipe: S, order: Order, speed: float, spent: float, monitor: float) -> S:
        """Return the recipe with as many epochs as fit the budget, and print their number.

        The warm-up keeps its share of the epochs.

        Args:
            speed: images per second; needed only for a budget in minutes.
            spent: seconds since the start of the run.
            monitor: seconds that one measurement of the monitor takes.

        Raises:
            RecipeError: the budget is too small for one update.
        """
        count = order.steps * order.batch  # images per epoch
        epochs = self._epochs(count, speed, spent, monitor, recipe.monitor.every)
        if round(epochs * order.steps) < 1:
            found = f"{speed:.1f} images/s and {spent / 60:.1f} minutes spent before the first update"
            raise RecipeError(
                f"budget: expected enough for one update, found {found if self.minutes else f'{epochs:.2g} epochs'}; "
                "allow more, or take a smaller model, smaller images or a smaller batch"
            )
        warmup = recipe.optim.warmup_epochs * epochs / recipe.optim.epochs
        if order.rank == 0:
            chosen = f"{epochs:g} epochs chosen ({epochs * count:,.0f} images, warm-up {warmup:.3g} epochs)"
            if self.minutes:
                end = time.strftime("%H:%M", time.localtime(time.time() + epochs * count / speed))
                chosen = f"{speed:.1f} images/s measured; {chosen}, until about {end}"
            say(f"budget: {chosen}")
        return recipe.changed("optim", epochs=epochs, warmup_epochs=warmup)

    def finish(self, recipe: S, order: Order, done: int, speed: float, spent: float, monitor: float) -> S:
        """Return the recipe with as many updates after update `done` as fit the budget, and print their number.

        The run ends after these updates.

        Args:
            done: updates done so far.
            speed, spent, monitor: as in `fit`.

        Raises:
            RecipeError: the budget is too small for one update.
        """
        epochs = self._epochs(order.steps * order.batch, speed, spent, monitor, recipe.monitor.every)
        updates = round(epochs * order.steps)
        if updates < 1:
            raise RecipeError(f"budget: expected enough for one update, found room for {epochs:.2g} epochs; allow more")
        if order.rank == 0:
            planned = round(recipe.optim.epochs * order.steps)
            say(
                f"finish: after update {done:,} of {planned:,} the run ends in {updates:,} updates "
                f"({updates / order.steps:.3g} epochs)"
            )
        return recipe.changed("optim", finish_after=done, finish_updates=updates)

    def _epochs(self, count: int, speed: float, spent: float, monitor: float, every: float) -> float:
        if self.epochs is not None:
            return self.epochs
        if self.images_seen is not None:
            return self.images_seen / count
        assert self.minutes is not None
        left = self.minutes * 60 * (1 - RESERVE) - spent - monitor  # after the last update the monitor always measures
        epochs = left / (count / speed + (monitor / every if every else 0))
        return round(max(epochs, 0), 2 if epochs > 1 else 6)
