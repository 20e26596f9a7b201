"""Views of an image: the images that an objective takes, made from crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .colours import Colours, change_colours, normalize
from .random_streams import Draws

VIEWS = {"different": 2, "same": 1, "none": 0}  # number of colour draws for two views


def _check_mode(mode: str) -> None:
    if mode not in VIEWS:
        raise ValueError(f"views: expected one of {tuple(VIEWS)}, got {mode!r}")


@dataclass(frozen=True)
class TwoViews:
    """Make two views from crops. Their colours may be drawn before the crops exist.

    Args:
        mode: "different", a draw of colours for each view; "same", one draw for both (Table 8); "none", no change.
        compiled: on a GPU, change the colours of the whole batch with few kernels from torch.compile.

    Raises:
        ValueError: the mode is unknown.
    """

    mode: str = "different"
    compiled: bool = False

    def __post_init__(self) -> None:
        _check_mode(self.mode)

    def draw(self, draws: Draws) -> tuple["Colours", ...]:
        """Draw the colours of the two views: two draws, one draw for both, or no draw."""
        return tuple(Colours.draw(draws) for _ in range(VIEWS[self.mode]))

    def __call__(self, crops: Tensor, drawn: "torch.Generator | Draws | tuple[Colours, ...]") -> tuple[Tensor, Tensor]:
        """Make context and target images, float (B, 3, H, W), ImageNet-normalised, from crops uint8 (B, 3, H, W).

        Args:
            drawn: the colours, as `draw` returns them, or a source of random numbers to draw them.
        """
        colours = drawn if isinstance(drawn, tuple) else self.draw(Draws.of(drawn, len(crops)))
        images = [change_colours(crops, each, self.compiled) for each in colours] or [normalize(crops.float() / 255)]
        return images[0], images[-1]


@dataclass(frozen=True)
class EachView:
    """Make an image from each of several crops. Their colours may be drawn before the crops exist.

    Args:
        count: number of crops.
        mode: "different", a draw of colours for each crop; "same", one draw for all; "none", no colour change.
        compiled: as in `TwoViews`.

    Raises:
        ValueError: the mode is unknown.
    """

    count: int
    mode: str = "different"
    compiled: bool = False

    def __post_init__(self) -> None:
        _check_mode(self.mode)

    def draw(self, draws: Draws) -> tuple["Colours", ...]:
        """Draw the colours of the crops: a draw for each crop, one draw for all crops, or no draw."""
        return tuple(Colours.draw(draws) for _ in range({**VIEWS, "different": self.count}[self.mode]))

    def __call__(
        self, crops: Tensor | Sequence[Tensor], drawn: "torch.Generator | Draws | tuple[Colours, ...]"
    ) -> list[Tensor]:
        """Make images, float (B, 3, H, W), ImageNet-normalised, from one or more tensors of crops uint8 (B, 3, H, W).

        Args:
            drawn: the colours, as `draw` returns them, or a source of random numbers to draw them.

        Raises:
            ValueError: the number of crops is not `count`.
        """
        crops = [crops] if isinstance(crops, Tensor) else list(crops)
        if len(crops) != self.count:
            raise ValueError(f"crops: expected {self.count} of each image, got {len(crops)}")
        colours = drawn if isinstance(drawn, tuple) else self.draw(Draws.of(drawn, len(crops[0])))
        if not colours:
            return [normalize(each.float() / 255) for each in crops]
        for_each_crop = colours if len(colours) == len(crops) else len(crops) * colours
        return [change_colours(crop, change, self.compiled) for crop, change in zip(crops, for_each_crop)]


@dataclass(frozen=True)
class TwoCrops:
    """Make context and target images from one crop by `TwoViews`, and a third image from another by `EachView`."""

    pair: TwoViews

    def draw(self, draws: Draws) -> tuple["Colours", ...]:
        """Draw the colours of all three images, in the mode of the pair."""
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
