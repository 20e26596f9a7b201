"""What the objectives share that name tokens of hidden patches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..scott import SCOTT
from .loader import Crops
from .plan import Drawing
from .vocabulary import Vocabulary


class Denoising(nn.Module):
    """An objective of one encoder, which is its student's, of a vocabulary, and of masks that show equally much.

    Args:
        views, mask: as `Drawing` takes them.
    """

    def __init__(self, student: nn.Module, vocabulary: Vocabulary, views: Any, mask: Callable[..., Tensor]) -> None:
        super().__init__()
        self.student: Any = student
        self.vocabulary = vocabulary
        self.views, self.mask = views, mask

    @property
    def encoders(self) -> dict[str, SCOTT]:
        """What may be watched and exported: there is one encoder, whatever it is asked for as."""
        encoder = getattr(self.student, "module", self.student).encoder
        return {"target": encoder, "context": encoder}

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

    def after_step(self, step: int, total: int) -> None:
        """Nothing follows an update."""
