"""The crops of each batch and its other random inputs: pure functions of (seed, epoch, index, view) in any process.

Drawing and processing are separate. If images are on a GPU, worker processes run ahead and draw boxes, colours and
masks, a few small arrays per batch. This process then cuts and resizes the crops.
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
from ..signals import leave_to_parent
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

Made: TypeAlias = Tensor | list[Tensor]  # crops of a batch, uint8 (B, 3, H, W), or a list of one such tensor per view
PATCH = 16  # pixels
GRACE = 60  # seconds that a worker outlives a SIGTERM
AHEAD = 2  # batches that each worker prepares in advance


@dataclass(frozen=True)
class View:
    """Describe one crop of an image: number of the view, side in pixels, and range of its share of the image's area."""

    number: int
    size: int
    area: Area


class Crops(Dataset):
    """Make the random crops of an image in an epoch: one view or several.

    Args:
        size: side of the crops, in pixels.
        views: number of crops of that size.
        local_views: number of further crops, of half that size in whole patches, from smaller parts of the image.
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
        """Return the number of worker processes: at most `workers`, 0 without a GPU if images are decoded already."""
        needed = torch.cuda.is_available() or self.images.pixels is None or self.on_device
        return min(workers, count_cores()) if needed else 0

    def check_room(self, batch: int, parts: int, workers: int, sharing: int = 1) -> None:
        """Check that the crops of a process's batch fit into RAM, with the batches that its workers hold ready.

        Args:
            batch: number of images.
            parts: number of parts in which the batch is processed, as fp32.
            workers: as in `load`.
            sharing: number of processes of this machine that need as much memory.

        Raises:
            RecipeError: the crops do not fit.
        """
        if self.on_device:  # a GPU reports by itself that its memory is full
            return
        pixels = batch * sum(3 * view.size**2 for view in self.views)
        needed, free = pixels * (1 + AHEAD * self.ahead(workers)) + 4 * pixels // parts, find_available_ram() // sharing
        if needed > free:
            several = "objective.views_per_image, objective.local_views, " if len(self.views) > 1 else ""
            raise RecipeError(
                f"recipe: expected crops of a batch that fit into {free / 1e9:.1f} GB of free memory, "
                f"found {len(self.views)} crops of each of {batch} images, which take {needed / 1e9:.1f} GB; lower "
                f"{several}optim.batch_size or run.workers"
            )

    @property
    def on_device(self) -> bool:
        """Return True if the images are on a GPU, where they are also cropped."""
        return self.images.pixels is not None and self.images.pixels.device.type != "cpu"

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, Made]:
        """Return epochs and indices of B places, int64 (B, 2), and their crops, uint8 (B, 3, size, size).

        With several views, the crops are a list with a tensor for each view.
        """
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
    """Draw the boxes of the random crops of `Crops`, without the images."""

    def __init__(self, crops: Crops) -> None:
        self.sizes, self.offsets = crops.images.sizes, crops.images.offsets
        self.key, self.views = crops.key, crops.views

    def __getitems__(self, places: list[Place]) -> tuple[Tensor, list[np.ndarray]]:
        """Return epochs and indices of B places, int64 (B, 2), and a table from `make_crop_table` for each view."""
        where = torch.tensor(places)
        epochs, indices = where.unbind(1)
        sizes, offsets = self.sizes[indices.numpy()], self.offsets[indices.numpy()]
        tables = []
        for view in self.views:
            draws = Draws.keyed(self.key, epochs, indices, view=view.number)
            tables.append(make_crop_table(sizes, offsets, draws, view.area))
        return where, tables


class Planned(Dataset):
    """Prepare the inputs of a batch: what `drawing` draws, and the crops, or only their boxes if images are on a GPU.

    Without `drawing`, the first input is the epochs and indices of the images. Boxes are numpy arrays, because these
    travel between processes as bytes, whereas each torch tensor would need a file.
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

    With several views, a part has a list of crops.

    Without a GPU, if images are decoded already, this process makes everything. Otherwise worker processes run ahead
    until the generator is closed: at most `workers`, and at most one per core. The workers draw, and they make the
    crops unless the images are on the GPU.

    Args:
        drawing: draws the inputs of an objective. Without it, what was drawn is replaced by the epochs and indices of
            the images, int64 (B, 2), on which such draws depend.
        compiled: cut images on a GPU with torch.compile.

    Raises:
        DataError: an image could be read at the start, but cannot be read now.
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
    except DataError as error:  # a worker's error has a traceback before the sentence
        sentence = str(error).strip().splitlines()[-1]
        raise DataError(sentence.removeprefix("scott_models.errors.DataError: ")) from None
    finally:
        del pieces  # ends the workers


def iterate(planned: Planned, pieces: Iterator[Piece], workers: int, pinned: bool = False) -> Iterator[Any]:
    """Iterate over the inputs of each piece; workers, if any, end when nothing refers to the iterator any more."""
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
    """Ignore Ctrl-C and SIGHUP, and end only `GRACE` seconds after a SIGTERM.

    The signals reach the whole process group. The parent must save first, and then ends its workers itself.
    """
    leave_to_parent()
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
