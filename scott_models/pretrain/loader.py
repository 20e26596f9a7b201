"""Which image when, and its crop: pure functions of (seed, epoch, index), whoever computes them."""

import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .crops import random_crops, random_crops_on_device
from .draws import Draws
from .store import Images, cores

Place = tuple[int, int]  # epoch, index
GRACE = 60  # seconds that a worker outlives a SIGTERM


@dataclass(frozen=True)
class Order:
    """The order of all images in every epoch, and the part of it that one process sees.

    An epoch's last, incomplete batch is dropped. A batch is cut into processes * parts equal pieces; part p of the
    process with this rank is piece p * processes + rank.
    """

    count: int
    batch: int
    seed: int
    rank: int = 0
    processes: int = 1
    parts: int = 1

    @property
    def steps(self) -> int:
        """Updates an epoch has."""
        return self.count // self.batch

    def of_update(self, step: int) -> list[Place]:
        """All images of update `step` (from 1)."""
        epoch, place = divmod(step - 1, self.steps)
        order = _order(self.seed, epoch, self.count)
        return [(epoch, i) for i in order[place * self.batch : (place + 1) * self.batch].tolist()]

    def pieces(self, first: int, last: int) -> Iterator[list[Place]]:
        """This process's parts of updates `first` to `last`, one after the other."""
        size = self.batch // (self.processes * self.parts)
        for step in range(first, last + 1):
            places = self.of_update(step)
            for part in range(self.parts):
                start = (part * self.processes + self.rank) * size
                yield places[start : start + size]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(key(seed, "order", epoch) >> np.uint64(1)))
    return torch.randperm(count, generator=generator)


class Crops(Dataset):
    """The random crop of an image in an epoch."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        self.images, self.size, self.key = images, size, key(seed, "crop")

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, Tensor]:
        """Places (B) -> their epochs and indices (B, 2), crops uint8 (B, 3, size, size)."""
        where = torch.tensor(places)
        draws = Draws.keyed(self.key, *where.unbind(1))
        indices = [index for _, index in places]
        if self.images.pixels is not None and self.images.pixels.device.type != "cpu":
            return where, random_crops_on_device(self.images, indices, self.size, draws)
        return where, random_crops([self.images[index] for index in indices], self.size, draws)


def load(
    order: Order, crops: Crops, first: int, last: int, workers: int
) -> Generator[list[tuple[Tensor, Tensor]], None, None]:
    """The parts of every update from `first` to `last`: lists of (where, crops), as `Crops` gives them.

    Crops are made here, if the decoded images are where they are needed, on a GPU or for a CPU; otherwise as many
    processes as `workers`, or as there are cores, make them ahead of their use, until it is closed.

    Raises:
        DataError: an image that could be read at the start and cannot any more.
    """
    pixels, cuda = crops.images.pixels, torch.cuda.is_available()
    elsewhere = pixels is None or (cuda and pixels.device.type == "cpu")
    pieces = iter(
        DataLoader(
            crops,
            batch_sampler=order.pieces(first, last),
            num_workers=min(workers, cores()) if elsewhere else 0,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_parent,
            pin_memory=elsewhere and cuda,
        )
    )
    try:
        for _ in range(first, last + 1):
            yield [next(pieces) for _ in range(order.parts)]
    except DataError as error:  # a worker's comes with its traceback, our sentence last
        sentence = str(error).strip().splitlines()[-1]
        raise DataError(sentence.removeprefix("scott_models.errors.DataError: ")) from None
    finally:
        del pieces  # which ends its workers


def key(seed: int, purpose: str, number: int = 0) -> np.uint64:
    """64 bits for each purpose and number of a run, unlike its neighbours'."""
    entropy = (seed, int.from_bytes(purpose.encode()), number)
    return np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]


def _unchanged(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and a launcher's SIGTERM reach the whole group; the parent, which must save, ends its workers in time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
