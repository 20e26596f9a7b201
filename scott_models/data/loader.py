"""Which image when, its crops, and what they need: pure functions of (seed, epoch, index, view), whoever computes them.

What is drawn and what is done are apart. Where images are on a GPU, processes that run ahead draw boxes, colours and
masks, a few small arrays a batch, and this process cuts and resizes.
"""

import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError, RecipeError
from .crops import (
    AREA,
    LOCAL_AREA,
    Area,
    cut_boxes,
    find_largest_box,
    make_crop_table,
    make_random_crops,
    make_random_crops_on_device,
)
from .decoded import Images, count_cores
from .memory import find_available_ram
from .order import Order, Piece, Place
from .random_streams import Draws, make_key

Made: TypeAlias = Tensor | list[Tensor]  # of a batch its crops, uint8 (B, 3, H, W), or those of each view
PATCH = 16  # pixels
GRACE = 60  # seconds that a worker outlives a SIGTERM
AHEAD = 2  # batches that each worker makes before they are asked for


@dataclass(frozen=True)
class View:
    """Describe one of the crops of an image: its number, pixels of its sides, and its share of the image's area."""

    number: int
    size: int
    area: Area


class Crops(Dataset):
    """The random crops of an image in an epoch: one, or several views.

    Args:
        size: pixels of their sides.
        views: how many of that size.
        local_views: how many more of half that size, in whole patches, and of smaller parts of the image.
    """

    def __init__(self, images: Images, size: int, seed: int, views: int = 1, local_views: int = 0) -> None:
        self.images, self.size, self.seed, self.key = images, size, seed, make_key(seed, "crop")
        self.global_views, self.local_views = views, local_views
        small = max(1, size // (2 * PATCH)) * PATCH
        kinds = views * [(size, AREA)] + local_views * [(small, LOCAL_AREA)]
        self.views = [View(number, *kind) for number, kind in enumerate(kinds)]

    def at(self, size: int) -> "Crops":
        """Return the same crops at another size."""
        return Crops(self.images, size, self.seed, self.global_views, self.local_views)

    def ahead(self, workers: int) -> int:
        """Tell how many processes make batches ahead: none for a CPU that has the decoded images."""
        needed = torch.cuda.is_available() or self.images.pixels is None or self.on_device
        return min(workers, count_cores()) if needed else 0

    def check_room(self, batch: int, parts: int, workers: int, sharing: int = 1) -> None:
        """Make sure that the crops of a process's batch fit into RAM, with those that its workers hold ready.

        Args:
            batch: images.
            parts: in which they are worked through, as fp32.
            workers: as `load` takes them.
            sharing: processes of this machine that need as much.

        Raises:
            RecipeError: they do not.
        """
        if self.on_device:  # whose memory tells by itself
            return
        pixels = batch * sum(3 * view.size**2 for view in self.views)
        needed, free = pixels * (1 + AHEAD * self.ahead(workers)) + 4 * pixels // parts, find_available_ram() // sharing
        if needed > free:
            several = "objective.views_per_image, objective.local_views, " if len(self.views) > 1 else ""
            raise RecipeError(
                f"recipe: expected crops of a batch that fit into the {free / 1e9:.1f} GB of memory that are free, "
                f"found {len(self.views)} of each of {batch} images, which take {needed / 1e9:.1f} GB; lower "
                f"{several}optim.batch_size or run.workers"
            )

    @property
    def on_device(self) -> bool:
        """Tell whether the images are on a GPU, and are cut there."""
        return self.images.pixels is not None and self.images.pixels.device.type != "cpu"

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, Made]:
        """Places (B) -> their epochs and indices (B, 2), crops uint8 (B, 3, size, size); of several views a list."""
        where = torch.tensor(places)
        epochs, numbers = where.unbind(1)
        indices = [index for _, index in places]
        images = [] if self.on_device else [self.images[index] for index in indices]
        made = []
        for view in self.views:
            draws = Draws.keyed(self.key, epochs, numbers, view=view.number)
            if self.on_device:
                made.append(make_random_crops_on_device(self.images, indices, view.size, draws, view.area))
            else:
                made.append(make_random_crops(images, view.size, draws, view.area))
        return where, made if len(made) > 1 else made[0]


class Boxes(Dataset):
    """Where the random crops of `Crops` are, without the images."""

    def __init__(self, crops: Crops) -> None:
        self.sizes, self.offsets = crops.images.sizes, crops.images.offsets
        self.key, self.views = crops.key, crops.views

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, list[np.ndarray]]:
        """Places (B) -> their epochs and indices (B, 2), a `crop_table` of them for each view."""
        where = torch.tensor(places)
        epochs, indices = where.unbind(1)
        sizes, offsets = self.sizes[indices.numpy()], self.offsets[indices.numpy()]
        tables = []
        for view in self.views:
            draws = Draws.keyed(self.key, epochs, indices, view=view.number)
            tables.append(make_crop_table(sizes, offsets, draws, view.area))
        return where, tables


class Planned(Dataset):
    """Make what a batch needs ahead of its use: what `drawing` draws, or else the places; and crops, or their boxes.

    Between processes numpy's arrays travel as bytes, where each of torch's tensors would need a file.
    """

    def __init__(self, crops: Crops, drawing: Callable[[Draws], Any] | None) -> None:
        self.source = Boxes(crops) if crops.on_device else crops
        self.key, self.drawing = make_key(crops.seed, "inputs"), drawing

    def __getitems__(self, piece: Piece) -> tuple[Any, Made | list[np.ndarray]]:
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
) -> Generator[list[tuple[Any, Made]], None, None]:
    """Yield the parts of each update from `first` to `last`: lists of (what was drawn, crops uint8 (B, 3, size, size)).

    Of several views a part has a list of crops.

    For a CPU that has the decoded images all is made here. Otherwise as many processes as `workers`, or as there are
    cores, run ahead until it is closed: they draw, and make the crops if the images are not on the GPU.

    Args:
        drawing: an objective's; without one come the epochs and indices, int64 (B, 2), that its draws follow from.
        compiled: cut images that are on a GPU by torch.compile.

    Raises:
        DataError: an image that could be read at the start and cannot any more.
    """
    pixels, pinned = crops.images.pixels, torch.cuda.is_available() and not crops.on_device
    pieces = iterate(Planned(crops, drawing), order.pieces(first, last), crops.ahead(workers), pinned)
    largest = find_largest_box(crops.images.sizes)

    def cut(plan: Any, made: Any) -> tuple[Any, Made]:
        if not crops.on_device:
            return plan, made
        cuts = [cut_boxes(pixels, table, largest, v.size, compiled) for table, v in zip(made, crops.views)]
        return plan, cuts if len(cuts) > 1 else cuts[0]

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


def _unchanged(batch: Any) -> Any:
    return batch


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and a launcher's SIGTERM reach the whole group; the parent, which must save, ends its workers in time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
