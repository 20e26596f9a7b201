"""As much training as time or images allow: epochs, and with them every schedule, fitted before the first update.

Or, of a run under way, the updates in which it is brought to an end.
"""

import math
import sys
import time
from dataclasses import dataclass
from typing import TypeVar

from ..data.order import Order
from ..errors import RecipeError
from .settings import Settings

S = TypeVar("S", bound=Settings)
RESERVE = 0.02  # of the time, for checkpoints and the export


@dataclass(frozen=True)
class Budget:
    """Minutes from the start of `pretrain`, or images to see, or epochs; one of the three.

    Raises:
        RecipeError: several, or none above 0.
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
        """A budget if any is given."""
        given = minutes, images_seen, epochs
        return None if given == (None, None, None) else cls(*given)

    def fit(self, recipe: S, order: Order, speed: float, spent: float, monitor: float) -> S:
        """The recipe with the epochs that fit, which it tells; the warm-up keeps its share of them.

        Args:
            speed: images a second; only minutes need it.
            spent: seconds since the start; `monitor`: seconds that one monitoring takes.

        Raises:
            RecipeError: not enough for one update.
        """
        count = order.steps * order.batch  # images an epoch sees
        epochs = self._epochs(count, speed, spent, monitor, recipe.monitor.every)
        if round(epochs * order.steps) < 1:
            found = f"{speed:.1f} images/s and {spent / 60:.1f} minutes gone before the first"
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
            print(f"budget: {chosen}", file=sys.stderr)
        return recipe.changed("optim", epochs=epochs, warmup_epochs=warmup)

    def finish(self, recipe: S, order: Order, done: int, speed: float, spent: float, monitor: float) -> S:
        """Return the recipe with as many updates after update `done` as fit, in which the run ends, and tell them.

        Args:
            speed, spent, monitor: as `fit`.

        Raises:
            RecipeError: not enough for one update.
        """
        epochs = self._epochs(order.steps * order.batch, speed, spent, monitor, recipe.monitor.every)
        updates = round(epochs * order.steps)
        if updates < 1:
            raise RecipeError(f"budget: expected enough for one update, found room for {epochs:.2g} epochs; allow more")
        if order.rank == 0:
            planned = round(recipe.optim.epochs * order.steps)
            print(
                f"finish: after update {done:,} of {planned:,} the run ends in {updates:,} updates "
                f"({updates / order.steps:.3g} epochs)",
                file=sys.stderr,
            )
        return recipe.changed("optim", finish_after=done, finish_updates=updates)

    def _epochs(self, count: int, speed: float, spent: float, monitor: float, every: float) -> float:
        if self.epochs is not None:
            return self.epochs
        if self.images_seen is not None:
            return self.images_seen / count
        assert self.minutes is not None
        left = self.minutes * 60 * (1 - RESERVE) - spent - monitor  # the last update is always watched
        epochs = left / (count / speed + (monitor / every if every else 0))
        return round(max(epochs, 0), 2 if epochs > 1 else 6)
