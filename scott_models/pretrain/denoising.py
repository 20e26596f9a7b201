"""What the objectives share that name tokens of hidden patches."""

from pathlib import Path
from typing import Any

from torch import nn

from ..scott import SCOTT
from .loader import Crops
from .vocabulary import Vocabulary


class Denoising(nn.Module):
    """An objective of one encoder, which is its student's, and of a vocabulary."""

    def __init__(self, student: nn.Module, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.student: Any = student
        self.vocabulary = vocabulary

    @property
    def encoders(self) -> dict[str, SCOTT]:
        """What may be watched and exported: there is one encoder, whatever it is asked for as."""
        encoder = getattr(self.student, "module", self.student).encoder
        return {"target": encoder, "context": encoder}

    def prepare(self, crops: Crops, folder: Path) -> None:
        """Fill the vocabulary: with the words of a run's folder, or new ones of its images."""
        self.vocabulary.fill(crops, folder)

    def after_step(self, step: int, total: int) -> None:
        """Nothing follows an update."""
