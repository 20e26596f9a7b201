"""Features of a frozen model for probes: of test images, and of augmented views, stored or computed each time."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.colours import Colours, change_colours, normalize
from ..data.crops import make_random_crops, make_random_crops_on_device
from ..data.images import Row
from ..data.memory import choose_place
from ..data.parallel import load_batches
from ..data.random_streams import Draws, make_key
from ..errors import DataError
from ..progress import track
from .features import Features, forward_features, load_evaluation_batches, resolve_transform_config, scale, to_device
from .pixel_cache import PixelCache

BATCH = 64
FP16_LARGEST = 65504


class Frozen:
    """Hold a model that is not trained, on its device.

    Args:
        label: the model's name in messages and progress bars.
        img_size: pixels; by default the size the weights were trained at.

    Raises:
        DataError: the model cannot take images of this size, or its features of a black image are not finite.
    """

    def __init__(self, model: nn.Module, label: str, img_size: int | None = None) -> None:
        self.model, self.label, self.img_size = to_device(model), label, img_size
        self.config = resolve_transform_config(model, img_size)
        self.size: int = self.config["input_size"][-1]
        try:
            pooled, patches = forward_features(self.model, torch.zeros(1, *self.config["input_size"]))
        except (AssertionError, RuntimeError, ValueError) as error:  # what timm, torch and we raise for a wrong shape
            raise DataError(f"{label}: cannot take images of {self.size} x {self.size} pixels ({error})") from error
        if not pooled.isfinite().all():
            raise DataError(
                f"{label}: expected finite features of a black image, found NaN or infinity; its weights are damaged"
            )
        self.dim, self.has_patches, self.device = pooled.shape[1], patches is not None, pooled.device
        self.patch_shape = None if patches is None else tuple(patches.shape[1:])

    def pooled(self, images: Sequence[Path | Row], what: str) -> Tensor:
        """Return the pooled features of images, through the model's evaluation transform: (n, D), on the CPU."""
        return torch.cat([pooled for pooled, _ in self.evaluated(images, what)]).cpu()

    def evaluated(self, images: Sequence[Path | Row], what: str) -> Iterator[Features]:
        """Yield features of images in their order, through the evaluation transform; a `PixelCache` keeps the crops.

        Raises:
            DataError: the features of some images are not finite; raised after the last image.
        """
        batches = zip(self._evaluation_batches(images, what), torch.arange(len(images)).split(BATCH))
        return self._checked(images, ((which, batch) for batch, which in batches))

    def _evaluation_batches(self, images: Sequence[Path | Row], what: str) -> Iterator[Tensor]:
        what = f"{self.label}, {what}"
        crops = images.crops(self.config, BATCH, self.device, what) if isinstance(images, PixelCache) else None
        if crops is None:  # no cache, or a transform whose crops are not bytes
            yield from load_evaluation_batches(self.model, images, self.img_size, BATCH, what)
            return
        for some in crops:
            yield normalize(scale(some.to(self.device)), self.config["mean"], self.config["std"])

    def require_squares(self) -> None:
        """Validate early that the model takes square images, because augmented views are square.

        Raises:
            DataError: the model takes images that are not square.
        """
        _, height, width = self.config["input_size"]
        if height != width:
            raise DataError(f"{self.label}: expected square images for augmented views, found {height} x {width}")

    def views(self, images: Sequence[Path | Row], pieces: Iterable[Tensor], seed: int) -> Iterator[Features]:
        """Yield features of augmented views, for batches of places: int64 (B, 2), epoch and image.

        The seed determines the views. A `PixelCache` keeps decoded images for other views. If a GPU has room for all
        decoded images, views are cut and coloured there. Their draws are the same; their pixels differ from a CPU's by
        1 or 2 of 255.

        Raises:
            DataError: the features of some images are not finite; checked whenever there are as many new views as
                images, and at the end.
        """
        return self._checked(images, self._views(PixelCache.of(images), pieces, seed))

    def _views(self, images: PixelCache, pieces: Iterable[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = self.config["mean"], self.config["std"]
        for places, draws, crops in self._crops(images, pieces, seed):
            yield places[:, 1], change_colours(crops.to(self.device), Colours.draw(draws), mean=mean, std=std)

    def _crops(self, images: PixelCache, pieces: Iterable[Tensor], seed: int) -> Iterator[tuple[Tensor, Draws, Tensor]]:
        """Yield batches of places, with the draws left for colours and random crops, uint8 (B, 3, size, size)."""
        on_gpu = images.on(self.device, BATCH, f"{self.label}, decoding")
        if on_gpu is not None:
            for places in pieces:
                draws = _make_draws(places, seed)
                yield places, draws, make_random_crops_on_device(on_gpu, places[:, 1].tolist(), self.size, draws)
            return

        def cut(loaded: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Draws, Tensor]:
            places = torch.stack([place for place, _ in loaded])
            draws = _make_draws(places, seed)
            return places, draws, make_random_crops([image for _, image in loaded], self.size, draws)

        chunks = (list(places) for places in pieces)
        yield from load_batches(chunks, lambda place: (place, images.decoded(int(place[1]))), cut)

    def _checked(self, images: Sequence[Path | Row], batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Features]:
        """Yield features of batches: indices of the images, int64 (B,), and inputs of the model, (B, 3, H, W).

        The check for finite features waits for the device, so there is one check for every len(images) inputs, and one
        at the end.

        Raises:
            DataError: some features are not finite.
        """
        indices: list[Tensor] = []
        finite: list[Tensor] = []

        def check() -> None:
            bad = torch.cat(indices)[~torch.cat(finite).cpu()].unique()
            self.refuse(images, bad, "finite", "the weights are damaged, or the model cannot process this image")
            indices.clear()
            finite.clear()

        for which, batch in batches:
            features = forward_features(self.model, batch)
            indices.append(which)
            finite.append(torch.stack([_check_finite(part) for part in features if part is not None]).all(dim=0))
            yield features
            if sum(map(len, indices)) >= len(images):
                check()
        if indices:
            check()

    def refuse(self, images: Sequence[Path | Row], bad: Tensor, expected: str, advice: str) -> None:
        """Raise DataError if `bad`, the ascending indices of bad images, int64 (k,), is not empty."""
        if len(bad):
            raise DataError(
                f"{self.label}: features of {len(bad)} of {len(images)} images are not {expected}; "
                f"the first is {images[int(bad[0])]}; {advice}"
            )


class Cache:
    """Compute the features of every training image once: of the image as it is, and of some augmented views.

    Patch features are kept in fp16: on the model's device if they fit into its share of the free memory (memory.py),
    else in RAM within its share, else in a file mapped into memory. Batches are gathered where the features are.

    Args:
        views: augmented views of each image; epoch e of a head uses pass e modulo (views + 1).
        folder: where the file of patch features may lie as long as the cache is used.
        patches: whether patch features are kept.

    Attributes:
        device: where the features are.
        pooled: (views + 1, images, D); pass 0 has the images as they are.
        patches: (views + 1, images, N, D), fp16, or None.

    Raises:
        DataError: some features are not finite, or some patch features exceed the range of fp16.
    """

    def __init__(
        self, frozen: Frozen, images: Sequence[Path | Row], views: int, folder: str | Path, *, patches: bool
    ) -> None:
        self.device, self.patches = frozen.device, None
        if patches:
            assert frozen.patch_shape is not None
            shape = (views + 1, len(images), *frozen.patch_shape)
            self.patches = make_fp16_buffer(shape, frozen.device, Path(folder) / "patches.npy")
            self.device = self.patches.device
        self.pooled = torch.empty(views + 1, len(images), frozen.dim, device=self.device)
        self._overflowed = torch.zeros(len(images), dtype=torch.bool, device=frozen.device)
        chunks = [places for view in range(views + 1) for places in _stack_places(view, len(images)).split(BATCH)]
        firsts = len(chunks) // (views + 1)
        shown = track(chunks[firsts:], f"{frozen.label}, views", total=views * len(images), size=BATCH)
        features = chain(frozen.evaluated(images, "train"), frozen.views(images, shown, seed=0))
        for of_batch, chunk in zip(features, chunks):
            self._store(chunk, of_batch)
        bad = self._overflowed.cpu().nonzero()[:, 0]
        advice = "use the protocol `paper`, which needs no fp16"
        frozen.refuse(images, bad, f"at most {FP16_LARGEST}, the largest number of fp16", advice)

    def _store(self, places: Tensor, features: Features) -> None:
        pooled, patches = features
        view, first = places[0].tolist()
        images = slice(first, first + len(places))
        self.pooled[view, images] = pooled
        if self.patches is not None:
            assert patches is not None
            self._overflowed[images] |= patches.flatten(1).abs().amax(dim=1) > FP16_LARGEST
            self.patches[view, images] = patches.half()

    def views(self, pieces: Iterable[Tensor]) -> Iterator[Features]:
        """Yield the stored features for batches of places on `device`, like `Frozen.views`; patches in fp16."""
        views, count = self.pooled.shape[:2]
        pooled = self.pooled.flatten(0, 1)
        patches = None if self.patches is None else self.patches.flatten(0, 1)
        for places in pieces:
            rows = places[:, 0] % views * count + places[:, 1]
            yield pooled.index_select(0, rows), None if patches is None else patches.index_select(0, rows)


def make_fp16_buffer(shape: tuple[int, ...], device: torch.device, file: Path) -> Tensor:
    """Allocate an fp16 tensor in the device's share of free memory if it fits, else in RAM, else in a mapped file."""
    place = choose_place(2 * math.prod(shape), device)
    if place is not None:
        return torch.empty(shape, dtype=torch.float16, device=place)
    return torch.from_numpy(np.lib.format.open_memmap(file, "w+", np.float16, shape))


def _stack_places(epoch: int, count: int) -> Tensor:
    """List the places of all images in an epoch: int64 (count, 2)."""
    return torch.stack([torch.full((count,), epoch), torch.arange(count)], dim=1)


def _make_draws(places: Tensor, seed: int) -> Draws:
    return Draws.keyed(make_key(seed, "probe"), *places.unbind(1))


def _check_finite(features: Tensor) -> Tensor:
    """Tell for each image whether all its numbers are finite: (B, ...) -> bool (B,)."""
    return features.isfinite().flatten(1).all(dim=1)
