"""Views of an image: how crops of it become the images that an objective takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .colours import Colours, change_colours, normalize
from .random_streams import Draws

VIEWS = {"different": 2, "same": 1, "none": 0}  # how often colours are drawn


@dataclass(frozen=True)
class TwoViews:
    """Make two views from crops; their colours may be drawn before there are crops.

    Args:
        mode: "different", each view its own colours; "same", one draw for both (Table 8); "none", no colour change.
        compiled: on a GPU, change the colours of the whole batch in a few kernels of torch.compile's.

    Raises:
        ValueError: an unknown mode.
    """

    mode: str = "different"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.mode not in VIEWS:
            raise ValueError(f"views: expected one of {tuple(VIEWS)}, got {self.mode!r}")

    def draw(self, draws: Draws) -> tuple["Colours", ...]:
        """Draw the colours of both views: of each, of both together, or of none."""
        return tuple(Colours.draw(draws) for _ in range(VIEWS[self.mode]))

    def __call__(self, crops: Tensor, drawn: "torch.Generator | Draws | tuple[Colours, ...]") -> tuple[Tensor, Tensor]:
        """Make context and target images, float (B, 3, H, W), ImageNet-normalised, from crops uint8 (B, 3, H, W).

        Args:
            drawn: the colours, as `draw` gives them, or what draws them.
        """
        colours = drawn if isinstance(drawn, tuple) else self.draw(Draws.of(drawn, len(crops)))
        images = [change_colours(crops, each, self.compiled) for each in colours] or [normalize(crops.float() / 255)]
        return images[0], images[-1]


@dataclass(frozen=True)
class EachView:
    """Make an image from each of several crops; their colours may be drawn before there are crops.

    Args:
        count: of crops.
        mode: "different", each crop its own colours; "same", one draw for all; "none", no colour change.
        compiled: as `TwoViews`.
    """

    count: int
    mode: str = "different"
    compiled: bool = False

    def draw(self, draws: Draws) -> tuple["Colours", ...]:
        """Draw the colours of the crops: of each, of all together, or of none."""
        return tuple(Colours.draw(draws) for _ in range({**VIEWS, "different": self.count}[self.mode]))

    def __call__(
        self, crops: Tensor | Sequence[Tensor], drawn: "torch.Generator | Draws | tuple[Colours, ...]"
    ) -> list[Tensor]:
        """Make images, float (B, 3, H, W) each, ImageNet-normalised, from crops uint8 (B, 3, H, W), one or several.

        Args:
            drawn: the colours, as `draw` gives them, or what draws them.

        Raises:
            ValueError: another number of crops.
        """
        crops = [crops] if isinstance(crops, Tensor) else list(crops)
        if len(crops) != self.count:
            raise ValueError(f"crops: expected {self.count} of each image, got {len(crops)}")
        colours = drawn if isinstance(drawn, tuple) else self.draw(Draws.of(drawn, len(crops[0])))
        if not colours:
            return [normalize(each.float() / 255) for each in crops]
        each_its_own = colours if len(colours) == len(crops) else len(crops) * colours
        return [change_colours(some, change, self.compiled) for some, change in zip(crops, each_its_own)]


@dataclass(frozen=True)
class TwoCrops:
    """Make context and target images of a crop by `TwoViews`, and a third image of another crop by `EachView`."""

    pair: TwoViews

    def draw(self, draws: Draws) -> tuple["Colours", ...]:
        """Draw the colours of all three, as the pair's mode has them."""
        return self.pair.draw(draws) + self._other.draw(draws)

    def __call__(
        self, crops: Sequence[Tensor], drawn: "torch.Generator | Draws | tuple[Colours, ...]"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make three images, float (B, 3, H, W), ImageNet-normalised, from two crops uint8 (B, 3, H, W) each."""
        one, other = crops
        colours = drawn if isinstance(drawn, tuple) else self.draw(Draws.of(drawn, len(one)))
        first = VIEWS[self.pair.mode]
        return *self.pair(one, colours[:first]), *self._other(other, colours[first:])

    @property
    def _other(self) -> EachView:
        return EachView(1, self.pair.mode, self.pair.compiled)
