"""As much training as time or images allow: epochs, and with them every schedule, fitted before the first update."""

import sys
import time
from dataclasses import dataclass
from typing import TypeVar

from ..errors import RecipeError
from .loader import Order
from .recipe import Settings

S = TypeVar("S", bound=Settings)
RESERVE = 0.02  # of the time, for checkpoints and the export


@dataclass(frozen=True)
class Budget:
    """Minutes from the start of `pretrain`, or images to see; one of the two.

    Raises:
        RecipeError: both, or none above 0.
    """

    minutes: float | None = None
    images_seen: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.minutes, self.images_seen) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise RecipeError(
                "budget: expected minutes or images_seen, one of them and above 0, "
                f"got {self.minutes} and {self.images_seen}"
            )

    @classmethod
    def of(cls, minutes: float | None, images_seen: int | None) -> "Budget | None":
        """A budget if either is given."""
        return None if minutes is None and images_seen is None else cls(minutes, images_seen)

    def fit(self, recipe: S, order: Order, speed: float, spent: float, monitor: float) -> S:
        """The recipe with the epochs that fit, which it tells; the warm-up keeps its share of them.

        Args:
            speed: images a second.
            spent: seconds since the start; `monitor`: seconds that one monitoring takes.

        Raises:
            RecipeError: not enough for one update.
        """
        count = order.steps * order.batch  # images an epoch sees
        epochs = self._epochs(count, speed, spent, monitor, recipe.monitor.every)
        if round(epochs * order.steps) < 1:
            raise RecipeError(
                f"budget: expected enough for one update, found {speed:.1f} images/s and {spent / 60:.1f} minutes gone "
                f"before the first; allow more, or take a smaller model, smaller images or a smaller batch"
            )
        warmup = recipe.optim.warmup_epochs * epochs / recipe.optim.epochs
        end = time.strftime("%H:%M", time.localtime(time.time() + epochs * count / speed))
        if order.rank == 0:
            print(
                f"budget: {speed:.1f} images/s measured; {epochs:g} epochs chosen ({epochs * count:,.0f} images, "
                f"warm-up {warmup:.3g} epochs), until about {end}",
                file=sys.stderr,
            )
        return recipe.changed("optim", epochs=epochs, warmup_epochs=warmup)

    def _epochs(self, count: int, speed: float, spent: float, monitor: float, every: float) -> float:
        if self.images_seen is not None:
            return self.images_seen / count
        assert self.minutes is not None
        left = self.minutes * 60 * (1 - RESERVE) - spent - monitor  # the last update is always watched
        epochs = left / (count / speed + (monitor / every if every else 0))
        return round(max(epochs, 0), 2 if epochs > 1 else 6)
