"""Draw the random numbers that the inputs of an objective need, before the crops exist, e.g. in workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.colours import Colours
from ..data.device import copy_together
from ..data.random_streams import Draws
from ..models.scott import find_places


@dataclass(frozen=True)
class Plan:
    """Hold what was drawn for a batch.

    Attributes:
        colours: colour changes of the views, as `TwoViews.draw` returns them.
        masks: as `Drawing.masks` returns them, as arrays.
        more: arrays that only the objective itself knows, as `Drawing.more` returns them.
    """

    colours: tuple[Colours, ...]
    masks: tuple[np.ndarray, ...]
    more: tuple[np.ndarray, ...] = ()


def draw_nothing(draws: Draws) -> tuple[np.ndarray, ...]:
    """Return an empty tuple: the objective needs no more random numbers."""
    return ()


def name_images(draws: Draws) -> tuple[np.ndarray]:
    """Return the indices of the images of a batch among those of the run, int64 (B,). Nothing is drawn.

    Raises:
        ValueError: the indices are unknown, because the draws are not from `Draws.keyed`.
    """
    if draws.images is None:
        raise ValueError("draws: expected those of known images (Draws.keyed), got a generator")
    return (draws.images.numpy(),)


@dataclass(frozen=True)
class Drawing:
    """Draw the colours of the views and the masks of a batch; `inputs` applies them to crops.

    Args:
        views: (crops uint8, draws) -> normalised batches; `TwoViews` returns context and target. If it has a method
            `draw`, as `TwoViews` has, colours can be drawn before the crops exist.
        mask: (grid, batch=..., generator=...) -> visible, bool (batch, N); None if the objective hides no patches.
        grid: rows and columns of patches, for the mask.
        places: also return the places of the visible and of the hidden patches. Every image of a batch must then
            have the same number of visible patches.
        more: draws what else the objective needs, after colours and masks.
    """

    views: Any
    mask: Callable[..., Tensor] | None = None
    grid: tuple[int, int] = (0, 0)
    places: bool = False
    more: Callable[[Draws], tuple[np.ndarray, ...]] = draw_nothing

    @property
    def ahead(self) -> "Drawing | None":
        """Return this object, or None if the views cannot draw before the crops exist."""
        return self if hasattr(self.views, "draw") else None

    def __call__(self, draws: Draws) -> Plan:
        colours = self.views.draw(draws)
        return Plan(colours, tuple(mask.numpy() for mask in self.masks(draws)), self.more(draws))

    def masks(self, draws: Draws) -> tuple[Tensor, ...]:
        """Draw the mask of each image.

        Returns:
            visible, bool (B, N); with `places` also the places of the visible and of the hidden patches, int64 (B, K).
            Empty without a mask.
        """
        if self.mask is None:
            return ()
        visible = self.mask(self.grid, batch=len(draws.seeds), generator=draws)
        return (visible, find_places(visible), find_places(~visible)) if self.places else (visible,)

    def inputs(self, crops: Tensor | Sequence[Tensor], generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Turn crops, uint8 (B, 3, H, W), into the inputs of the objective.

        Args:
            crops: one batch, or a list of batches for views that take several.
            generator: a plan that was drawn before, or the random numbers to draw it from.

        Returns:
            the images of each view, float (B, 3, H, W), the masks and what `more` draws, on the device of the crops.
        """
        first = crops if isinstance(crops, Tensor) else crops[0]
        if isinstance(generator, Plan):
            images = self.views(crops, generator.colours)
            drawn = [torch.from_numpy(array) for array in generator.masks + generator.more]
        else:
            draws = Draws.of(generator, len(first))
            images = self.views(crops, draws)
            drawn = [*self.masks(draws), *map(torch.from_numpy, self.more(draws))]
        return *images, *copy_together(drawn, first.device)
