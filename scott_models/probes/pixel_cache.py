"""The pixels of images that several models use, or one model many times: read once, as far as memory allows."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ..data.decoded import Images
from ..data.images import Row, load_image
from ..data.memory import choose_place, find_room
from ..data.parallel import load_batches
from ..data.sources import Sample
from ..progress import track
from .features import make_evaluation_crop


class PixelCache(Sequence[Path | Row]):
    """Keep the pixels of images that were read.

    Two kinds of pixels are kept, each within its share of the free memory (memory.py):

    - Crops of the evaluation transform, of all images or of no image, for every transform that was used. The models of
      a comparison mostly share a transform, and so do the seeds of the control.
    - Decoded images at full size, from which random views are cut. RAM keeps as many images as fit; a GPU keeps all
      images or no image.
    """

    def __init__(self, images: Sequence[Path | Row]) -> None:
        self.images = images
        self._crops: dict[str, Tensor] = {}
        self._decoded: dict[int, Tensor] = {}
        self._room: int | None = None  # bytes left for decoded images; None before the first one
        self._on_device: dict[torch.device, Images | None] = {}
        self._lock = Lock()

    @classmethod
    def of(cls, images: Sequence[Path | Row]) -> "PixelCache":
        """Wrap images in a `PixelCache`, unless they are one already."""
        return images if isinstance(images, cls) else cls(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]

    def crops(self, config: dict[str, Any], batch: int, device: torch.device, what: str) -> Iterator[Tensor] | None:
        """Make the evaluation crop of every image, in their order.

        Args:
            config: a model's, from `resolve_transform_config`.
            device: the model's device, where the crops are kept if they fit.
            what: name of the progress bar.

        Returns:
            the crops, batch by batch: uint8 (B, 3, H, W); or None if the crops of this transform are not bytes.
        """
        cut = make_evaluation_crop(config)
        if cut is None:
            return None
        by_mean = ("mean", "std") if config.get("crop_mode") != "border" else ()  # timm fills borders with the mean
        kind = repr(sorted((name, value) for name, value in config.items() if name not in by_mean))
        if kind in self._crops:
            batches: Iterator[Tensor] = iter(self._crops[kind].split(batch))
        else:
            batches = self._make_crops(kind, cut, config["input_size"], batch, device)
        return track(batches, what, total=len(self), size=batch)

    def _make_crops(
        self, kind: str, cut: Callable[[Any], Tensor], shape: tuple[int, ...], batch: int, device: torch.device
    ) -> Iterator[Tensor]:
        place = choose_place(len(self) * int(np.prod(shape)), device)
        kept = None if place is None else torch.empty(len(self), *shape, dtype=torch.uint8, device=place)
        chunks = [self.images[start : start + batch] for start in range(0, len(self), batch)]
        done = 0
        for crops in load_batches(chunks, lambda image: cut(load_image(image)), torch.stack):
            if kept is not None:
                kept[done : done + len(crops)] = crops
            done += len(crops)
            yield crops
        if kept is not None:
            self._crops[kind] = kept

    def decoded(self, index: int) -> Tensor:
        """Return a decoded image at full size: uint8 (3, H, W). Threads may call this method at the same time."""
        if index in self._decoded:
            return self._decoded[index]
        pixels = pil_to_tensor(load_image(self.images[index]))
        with self._lock:
            if self._room is None:
                self._room = find_room(torch.device("cpu"))
            if pixels.nbytes <= self._room and index not in self._decoded:
                self._room -= pixels.nbytes
                self._decoded[index] = pixels
        return pixels

    def on(self, device: torch.device, batch: int, what: str) -> Images | None:
        """Return all decoded images on a GPU.

        Args:
            batch: images that are decoded at a time.
            what: name of the progress bar.

        Returns:
            None on a CPU, or if the images do not fit on the GPU or, on the way there, into RAM.
        """
        if device.type == "cpu":
            return None
        if device not in self._on_device:
            self._on_device[device] = self._move_to_device(device, batch, what)
        return self._on_device[device]

    def _move_to_device(self, device: torch.device, batch: int, what: str) -> Images | None:
        limit, total = find_room(device), 0
        chunks = [range(start, min(start + batch, len(self))) for start in range(0, len(self), batch)]
        sizes = np.zeros((len(self), 2), dtype=np.int64)
        decoded = track(load_batches(chunks, self.decoded, list), what, total=len(self), size=batch)
        for chunk, images in zip(chunks, decoded):
            sizes[chunk] = [image.shape[1:] for image in images]
            total += sum(image.nbytes for image in images)
            if total > limit or len(self._decoded) < chunk[-1] + 1:
                return None
        lengths = sizes.prod(axis=1) * 3
        offsets = lengths.cumsum() - lengths
        pixels = torch.empty(total, dtype=torch.uint8, device=device)
        for i, (start, length) in enumerate(zip(offsets.tolist(), lengths.tolist())):
            pixels[start : start + length] = self._decoded.pop(i).permute(1, 2, 0).reshape(-1)
        self._room = None
        samples, copies = [Sample(image) for image in self.images], np.zeros(len(self), dtype=bool)
        return Images(samples, 0, "", copies, sizes, offsets, pixels)
