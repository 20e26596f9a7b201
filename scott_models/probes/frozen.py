"""A frozen model's features as probes want them: of test images, and of augmented views, computed once or anew."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.colours import Colours, change_colours, normalize
from ..data.crops import make_random_crops, make_random_crops_on_device
from ..data.memory import choose_place
from ..data.parallel import load_batches
from ..data.random_streams import Draws, make_key
from ..data.sources import Row
from ..errors import DataError
from ..progress import track
from .features import Features, forward_features, load_evaluation_batches, resolve_transform_config, scale, to_device
from .pixel_cache import PixelCache

BATCH = 64
FP16_LARGEST = 65504


class Frozen:
    """A model on its device, that is not trained.

    Args:
        label: what it is called where people look.
        img_size: pixels; by default the size the weights were trained at.

    Raises:
        DataError: a size the model cannot take.
    """

    def __init__(self, model: nn.Module, label: str, img_size: int | None = None) -> None:
        self.model, self.label, self.img_size = to_device(model), label, img_size
        self.config = resolve_transform_config(model, img_size)
        self.size: int = self.config["input_size"][-1]
        try:
            pooled, patches = forward_features(self.model, torch.zeros(1, *self.config["input_size"]))
        except (AssertionError, RuntimeError, ValueError) as error:  # timm's, torch's and our ways to refuse a shape
            raise DataError(f"{label}: cannot take images of {self.size} x {self.size} pixels ({error})") from error
        if not pooled.isfinite().all():
            raise DataError(
                f"{label}: expected finite features, found others of a black image; its weights are damaged"
            )
        self.dim, self.has_patches, self.device = pooled.shape[1], patches is not None, pooled.device
        self.patch_shape = None if patches is None else tuple(patches.shape[1:])

    def pooled(self, images: Sequence[Path | Row], what: str) -> Tensor:
        """What it pools each image to, through its evaluation transform: (n, D), on the CPU."""
        return torch.cat([pooled for pooled, _ in self.evaluated(images, what)]).cpu()

    def evaluated(self, images: Sequence[Path | Row], what: str) -> Iterator[Features]:
        """Yield features of images in their order, by the evaluation transform; a `PixelCache` keeps the crops.

        Raises:
            DataError: once all are through, features that are not finite.
        """
        batches = zip(self._evaluation_batches(images, what), torch.arange(len(images)).split(BATCH))
        return self._checked(images, ((which, batch) for batch, which in batches))

    def _evaluation_batches(self, images: Sequence[Path | Row], what: str) -> Iterator[Tensor]:
        what = f"{self.label}, {what}"
        crops = images.crops(self.config, BATCH, self.device, what) if isinstance(images, PixelCache) else None
        if crops is None:  # nobody else to keep them for, or of a kind that bytes cannot hold
            yield from load_evaluation_batches(self.model, images, self.img_size, BATCH, what)
            return
        for some in crops:
            yield normalize(scale(some.to(self.device)), self.config["mean"], self.config["std"])

    def require_squares(self) -> None:
        """Ask before what takes long.

        Raises:
            DataError: a model of other images, of which there are no augmented views.
        """
        _, height, width = self.config["input_size"]
        if height != width:
            raise DataError(f"{self.label}: expected square images for augmented views, found {height} x {width}")

    def views(self, images: Sequence[Path | Row], pieces: Iterable[Tensor], seed: int) -> Iterator[Features]:
        """Yield features of augmented views, for batches of places: int64 (B, 2), epoch and image; the seed draws them.

        Decoded images of `PixelCache` are kept for other views. On a GPU that holds them all views are cut and coloured
        there: the same draws, pixels that differ from a CPU's by 1 or 2 of 255.

        Raises:
            DataError: once as many are through as there are images, features that are not finite.
        """
        return self._checked(images, self._views(PixelCache.of(images), pieces, seed))

    def _views(self, images: PixelCache, pieces: Iterable[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = self.config["mean"], self.config["std"]
        for places, draws, crops in self._crops(images, pieces, seed):
            yield places[:, 1], change_colours(crops.to(self.device), Colours.draw(draws), mean=mean, std=std)

    def _crops(self, images: PixelCache, pieces: Iterable[Tensor], seed: int) -> Iterator[tuple[Tensor, Draws, Tensor]]:
        """Yield random crops, uint8 (B, 3, size, size), of batches of places, and the draws left for colours."""
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
        """Yield features of batches: which images they are, int64 (B,), and what the model sees, (B, 3, H, W).

        Raises:
            DataError: once as many are through as there are images, or all, that some are not finite; until then
                nothing waits for the device.
        """
        indices: list[Tensor] = []
        finite: list[Tensor] = []

        def look() -> None:
            bad = torch.cat(indices)[~torch.cat(finite).cpu()].unique()
            self.refuse(images, bad, "finite", "its weights are damaged, or this image is beyond them")
            indices.clear()
            finite.clear()

        for which, batch in batches:
            features = forward_features(self.model, batch)
            indices.append(which)
            finite.append(torch.stack([_check_finite(part) for part in features if part is not None]).all(dim=0))
            yield features
            if sum(map(len, indices)) >= len(images):
                look()
        if indices:
            look()

    def refuse(self, images: Sequence[Path | Row], bad: Tensor, expected: str, advice: str) -> None:
        """Raise DataError if there are bad ones, indices of images int64 (k,), ascending."""
        if len(bad):
            raise DataError(
                f"{self.label}: features of {len(bad)} of {len(images)} images are not {expected}; "
                f"the first is {images[int(bad[0])]}; {advice}"
            )


class Cache:
    """Features of every training image, computed once: as it is, and of some augmented views.

    Patches are kept in fp16: on the model's device where they fit into its share of the free memory (memory.py), or
    else in RAM, within its share, or else in a file that is mapped into memory. Batches are gathered where they are.

    Args:
        views: augmented, of each image; epoch e of a head sees number e modulo views + 1.
        folder: where the patches' file may lie as long as the cache is used.
        patches: whether they are kept.

    Attributes:
        device: where everything lies.
        pooled: (views + 1, images, D), the images as they are first.
        patches: (views + 1, images, N, D), fp16, or None.

    Raises:
        DataError: features that are not finite, or patches' beyond what fp16 holds.
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
        self._overflown = torch.zeros(len(images), dtype=torch.bool, device=frozen.device)
        chunks = [places for view in range(views + 1) for places in _stack_places(view, len(images)).split(BATCH)]
        firsts = len(chunks) // (views + 1)
        shown = track(chunks[firsts:], f"{frozen.label}, views", total=views * len(images), size=BATCH)
        features = chain(frozen.evaluated(images, "train"), frozen.views(images, shown, seed=0))
        for of_batch, chunk in zip(features, chunks):
            self._keep(chunk, of_batch)
        bad = self._overflown.cpu().nonzero()[:, 0]
        frozen.refuse(images, bad, f"at most {FP16_LARGEST}, the largest of fp16", "the protocol `paper` keeps none")

    def _keep(self, places: Tensor, features: Features) -> None:
        pooled, patches = features
        view, first = places[0].tolist()
        images = slice(first, first + len(places))
        self.pooled[view, images] = pooled
        if self.patches is not None:
            assert patches is not None
            self._overflown[images] |= patches.flatten(1).abs().amax(dim=1) > FP16_LARGEST
            self.patches[view, images] = patches.half()

    def views(self, pieces: Iterable[Tensor]) -> Iterator[Features]:
        """Yield what `Frozen.views` would, for places on `device`, from what was computed; patches in fp16."""
        views, count = self.pooled.shape[:2]
        pooled = self.pooled.flatten(0, 1)
        patches = None if self.patches is None else self.patches.flatten(0, 1)
        for places in pieces:
            rows = places[:, 0] % views * count + places[:, 1]
            yield pooled.index_select(0, rows), None if patches is None else patches.index_select(0, rows)


def make_fp16_buffer(shape: tuple[int, ...], device: torch.device, file: Path) -> Tensor:
    """Allocate a tensor on the device if it fits into its share of free memory, else in RAM, else in a mapped file."""
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
    """Tell of each image whether all its numbers are finite: (B, ...) -> bool (B,)."""
    return features.isfinite().flatten(1).all(dim=1)
