"""What the inputs of an objective need of random numbers, drawn before there are crops: by whoever runs ahead."""

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
        colours: of its views, as `TwoViews.draw` gives them.
        masks: as `Drawing.masks` gives them.
        more: of an objective's own.
    """

    colours: tuple[Colours, ...]
    masks: tuple[np.ndarray, ...]
    more: tuple[np.ndarray, ...] = ()


def draw_nothing(draws: Draws) -> tuple[np.ndarray, ...]:
    """Draw nothing."""
    return ()


def name_images(draws: Draws) -> tuple[np.ndarray]:
    """Tell which images of a run a batch has, int64 (B,): nothing is drawn.

    Raises:
        ValueError: they are not known, as `Draws.keyed` knows them.
    """
    if draws.images is None:
        raise ValueError("draws: expected those of known images (Draws.keyed), got a generator")
    return (draws.images.numpy(),)


@dataclass(frozen=True)
class Drawing:
    """Draw what the views of each image of a batch, and perhaps a mask, need; `inputs` makes them.

    Args:
        views: how crops become images: (crops uint8, draws) -> normalised batches, of `TwoViews` context and target.
            With a method `draw`, as `TwoViews` has it, they can be drawn ahead.
        mask: (grid, batch=..., generator=...) -> visible, bool (batch, N); None of objectives that hide nothing.
        grid: rows and columns of patches, for the mask.
        places: whether the places of visible and hidden patches are wanted too, equally many in each image.
        more: what else an objective draws, after the rest.
    """

    views: Any
    mask: Callable[..., Tensor] | None = None
    grid: tuple[int, int] = (0, 0)
    places: bool = False
    more: Callable[[Draws], tuple[np.ndarray, ...]] = draw_nothing

    @property
    def ahead(self) -> "Drawing | None":
        """Return itself; None if the views only draw once there are crops."""
        return self if hasattr(self.views, "draw") else None

    def __call__(self, draws: Draws) -> Plan:
        colours = self.views.draw(draws)
        return Plan(colours, tuple(mask.numpy() for mask in self.masks(draws)), self.more(draws))

    def masks(self, draws: Draws) -> tuple[Tensor, ...]:
        """Draw visible, bool (B, N), and where asked for the places of visible and of hidden patches, int64 (B, K)."""
        if self.mask is None:
            return ()
        visible = self.mask(self.grid, batch=len(draws.seeds), generator=draws)
        return (visible, find_places(visible), find_places(~visible)) if self.places else (visible,)

    def inputs(self, crops: Tensor | Sequence[Tensor], generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Crops uint8 (B, 3, H, W) -> the views' images (B, 3, H, W), masks and the rest, on their device."""
        first = crops if isinstance(crops, Tensor) else crops[0]
        if isinstance(generator, Plan):
            images = self.views(crops, generator.colours)
            drawn = [torch.from_numpy(array) for array in generator.masks + generator.more]
        else:
            draws = Draws.of(generator, len(first))
            images = self.views(crops, draws)
            drawn = [*self.masks(draws), *map(torch.from_numpy, self.more(draws))]
        return *images, *copy_together(drawn, first.device)
