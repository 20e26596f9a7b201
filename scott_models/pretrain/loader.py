"""Which image when, its crop, and what its views need: pure functions of (seed, epoch, index), whoever computes them.

What is drawn and what is done are apart. Where images are on a GPU, processes that run ahead draw boxes, colours and
masks, a few small arrays a batch, and this process cuts and resizes.
"""

import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .crops import crop_table, cut_boxes, largest_box, random_crops, random_crops_on_device
from .draws import Draws
from .store import Images, cores

Place = tuple[int, int]  # epoch, index
GRACE = 60  # seconds that a worker outlives a SIGTERM


@dataclass(frozen=True)
class Piece:
    """A process's part of a batch: the number of its update, and the places of its images."""

    update: int
    places: list[Place]


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

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """This process's parts of updates `first` to `last`, one after the other."""
        size = self.batch // (self.processes * self.parts)
        for step in range(first, last + 1):
            places = self.of_update(step)
            for part in range(self.parts):
                start = (part * self.processes + self.rank) * size
                yield Piece(step, places[start : start + size])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(key(seed, "order", epoch) >> np.uint64(1)))
    return torch.randperm(count, generator=generator)


class Crops(Dataset):
    """The random crop of an image in an epoch."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        self.images, self.size, self.seed, self.key = images, size, seed, key(seed, "crop")

    @property
    def on_device(self) -> bool:
        """Tell whether the images are on a GPU, and are cut there."""
        return self.images.pixels is not None and self.images.pixels.device.type != "cpu"

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, Tensor]:
        """Places (B) -> their epochs and indices (B, 2), crops uint8 (B, 3, size, size)."""
        where = torch.tensor(places)
        draws = Draws.keyed(self.key, *where.unbind(1))
        indices = [index for _, index in places]
        if self.on_device:
            return where, random_crops_on_device(self.images, indices, self.size, draws)
        return where, random_crops([self.images[index] for index in indices], self.size, draws)


class Boxes(Dataset):
    """Where the random crops of `Crops` are, without the images."""

    def __init__(self, crops: Crops) -> None:
        self.sizes, self.offsets, self.key = crops.images.sizes, crops.images.offsets, crops.key

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, np.ndarray]:
        """Places (B) -> their epochs and indices (B, 2), a `crop_table` of them."""
        where = torch.tensor(places)
        chosen, draws = where[:, 1].numpy(), Draws.keyed(self.key, *where.unbind(1))
        return where, crop_table(self.sizes[chosen], self.offsets[chosen], draws)


class Planned(Dataset):
    """Make what a batch needs ahead of its use: what `drawing` draws, or else the places; and crops, or their boxes.

    Between processes numpy's arrays travel as bytes, where each of torch's tensors would need a file.
    """

    def __init__(self, crops: Crops, drawing: Callable[[Draws], Any] | None) -> None:
        self.source = Boxes(crops) if crops.on_device else crops
        self.key, self.drawing = key(crops.seed, "inputs"), drawing

    def __getitems__(self, piece: Piece) -> tuple[Any, Tensor | np.ndarray]:
        where, made = self.source.__getitems__(piece.places)
        if self.drawing is None:
            return where, made
        epochs, indices = where.unbind(1)
        return self.drawing(Draws.keyed(self.key, epochs, indices, piece.update)), made


def load(
    order: Order,
    crops: Crops,
    first: int,
    last: int,
    workers: int,
    drawing: Callable[[Draws], Any] | None = None,
    compiled: bool = False,
) -> Generator[list[tuple[Any, Tensor]], None, None]:
    """Yield the parts of each update from `first` to `last`: lists of (what was drawn, crops uint8 (B, 3, size, size)).

    For a CPU that has the decoded images all is made here. Otherwise as many processes as `workers`, or as there are
    cores, run ahead until it is closed: they draw, and make the crops if the images are not on the GPU.

    Args:
        drawing: an objective's; without one come the epochs and indices, int64 (B, 2), that its draws follow from.
        compiled: cut images that are on a GPU by torch.compile.

    Raises:
        DataError: an image that could be read at the start and cannot any more.
    """
    pixels, cuda = crops.images.pixels, torch.cuda.is_available()
    ahead = min(workers, cores()) if cuda or pixels is None or crops.on_device else 0
    pieces = iterate(Planned(crops, drawing), order.pieces(first, last), ahead, cuda and not crops.on_device)
    largest = largest_box(crops.images.sizes)

    def cut(plan: Any, made: Any) -> tuple[Any, Tensor]:
        return plan, cut_boxes(pixels, made, largest, crops.size, compiled) if crops.on_device else made

    try:
        for _ in range(first, last + 1):
            yield [cut(*next(pieces)) for _ in range(order.parts)]
    except DataError as error:  # a worker's comes with its traceback, our sentence last
        sentence = str(error).strip().splitlines()[-1]
        raise DataError(sentence.removeprefix("scott_models.errors.DataError: ")) from None
    finally:
        del pieces  # which ends its workers


def iterate(planned: Planned, pieces: Iterator[Piece], workers: int, pinned: bool = False) -> Iterator[Any]:
    """Yield what is made of each piece, here or by processes, which end when nobody refers to it any more."""
    return iter(
        DataLoader(
            planned,
            batch_sampler=pieces,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_parent,
            pin_memory=pinned,
        )
    )


def key(seed: int, purpose: str, number: int = 0) -> np.uint64:
    """64 bits for each purpose and number of a run, unlike its neighbours'."""
    entropy = (seed, int.from_bytes(purpose.encode()), number)
    return np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]


def _unchanged(batch: Any) -> Any:
    return batch


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and a launcher's SIGTERM reach the whole group; the parent, which must save, ends its workers in time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
