"""What the objectives share that name tokens of hidden patches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .loader import Crops
from .one_encoder import OneEncoder
from .plan import Drawing
from .vocabulary import Vocabulary


class Denoising(OneEncoder):
    """An objective of one encoder, which is its student's, of a vocabulary, and of masks that show equally much.

    Args:
        views, mask: as `Drawing` takes them.
    """

    def __init__(self, student: nn.Module, vocabulary: Vocabulary, views: Any, mask: Callable[..., Tensor]) -> None:
        super().__init__(student)
        self.vocabulary = vocabulary
        self.views, self.mask = views, mask

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.views, self.mask, self.encoders["target"].patch_embed.grid_size, places=True)

    @property
    def drawing(self) -> Drawing | None:
        """Return what draws ahead for `inputs`, if the views can."""
        return self._drawing.ahead

    def prepare(self, crops: Crops, folder: Path) -> None:
        """Fill the vocabulary: with the words of a run's folder, or new ones of its images."""
        self.vocabulary.fill(crops, folder)
