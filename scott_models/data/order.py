"""The order of images: a pure function of seed and epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .random_streams import make_key

Place = tuple[int, int]  # epoch, index


@dataclass(frozen=True)
class Piece:
    """Describe one process's part of a batch: the number of the update, and the places of the images."""

    update: int
    places: list[Place]


@dataclass(frozen=True)
class Order:
    """Describe the order of all images in every epoch, and the part of the order that one process sees.

    The last, incomplete batch of an epoch is dropped. A batch is cut into processes * parts equal pieces. Part p of
    the process with rank `rank` is piece p * processes + rank.
    """

    count: int
    batch: int
    seed: int
    rank: int = 0
    processes: int = 1
    parts: int = 1

    @property
    def steps(self) -> int:
        """Return the number of updates in an epoch."""
        return self.count // self.batch

    def of_update(self, step: int) -> list[Place]:
        """Return the places of all images of update `step` (counted from 1)."""
        epoch, place = divmod(step - 1, self.steps)
        order = _order(self.seed, epoch, self.count)
        return [(epoch, i) for i in order[place * self.batch : (place + 1) * self.batch].tolist()]

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """Yield this process's parts of updates `first` to `last`, in order."""
        size = self.batch // (self.processes * self.parts)
        for step in range(first, last + 1):
            places = self.of_update(step)
            for part in range(self.parts):
                start = (part * self.processes + self.rank) * size
                yield Piece(step, places[start : start + size])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(make_key(seed, "order", epoch) >> np.uint64(1)))
    return torch.randperm(count, generator=generator)
