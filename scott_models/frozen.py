"""A frozen model's features as probes want them: of test images, and of augmented views, computed once or anew."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from .data import Row, load_image
from .errors import DataError
from .features import Features, evaluated, forward, load_batches, on_device, transform_config
from .pretrain.augment import Colours, coloured
from .pretrain.crops import random_crops
from .pretrain.draws import Draws
from .pretrain.loader import Place, key
from .progress import track

BATCH = 64


class Frozen:
    """A model on its device, that is not trained.

    Args:
        label: what it is called where people look.
        img_size: pixels; by default the size the weights were trained at.

    Raises:
        DataError: a size the model cannot take.
    """

    def __init__(self, model: nn.Module, label: str, img_size: int | None = None) -> None:
        self.model, self.label, self.img_size = on_device(model), label, img_size
        self.config = transform_config(model, img_size)
        self.size: int = self.config["input_size"][-1]
        try:
            pooled, patches = forward(self.model, torch.zeros(1, *self.config["input_size"]))
        except (AssertionError, RuntimeError, ValueError) as error:  # timm's, torch's and our ways to refuse a shape
            raise DataError(f"{label}: cannot take images of {self.size} x {self.size} pixels ({error})") from error
        if not pooled.isfinite().all():
            raise DataError(
                f"{label}: expected finite features, found others of a black image; its weights are damaged"
            )
        self.dim, self.has_patches, self.device = pooled.shape[1], patches is not None, pooled.device

    def pooled(self, images: Sequence[Path | Row], what: str) -> Tensor:
        """What it pools each image to, through its evaluation transform: (n, D), on the CPU."""
        return torch.cat([pooled.cpu() for pooled, _ in self.evaluated(images, what)])

    def evaluated(self, images: Sequence[Path | Row], what: str) -> Iterator[Features]:
        """Through the model's evaluation transform, in their order."""
        return evaluated(self.model, images, self.img_size, BATCH, f"{self.label}, {what}")

    def require_squares(self) -> None:
        """Ask before what takes long.

        Raises:
            DataError: a model of other images, of which there are no augmented views.
        """
        _, height, width = self.config["input_size"]
        if height != width:
            raise DataError(f"{self.label}: expected square images for augmented views, found {height} x {width}")

    def views(self, images: Sequence[Path | Row], pieces: Iterable[Sequence[Place]], seed: int) -> Iterator[Features]:
        """Of each batch of places (epoch, image): the view of pretraining's augmentation that the seed gives it."""
        mean, std = self.config["mean"], self.config["std"]

        def load(place: Place) -> tuple[Place, Tensor]:
            return place, pil_to_tensor(load_image(images[place[1]]))

        def view(loaded: list[tuple[Place, Tensor]]) -> Tensor:
            places, pictures = zip(*loaded)
            draws = Draws.keyed(key(seed, "probe"), *torch.tensor(places).unbind(1))
            crops = random_crops(pictures, self.size, draws)
            return coloured(crops, Colours.draw(draws), mean=mean, std=std)

        for batch in load_batches(pieces, load, view):
            yield forward(self.model, batch)


class Cache:
    """Features of every training image, computed once: as it is, and of some augmented views.

    Args:
        views: augmented, of each image; epoch e of a head sees number e modulo views + 1.
        folder: where the patches' file may lie as long as the cache is used.
        patches: whether they are kept, in fp16 and on disk.

    Attributes:
        pooled: (views + 1, images, D), the images as they are first.
    """

    def __init__(
        self, frozen: Frozen, images: Sequence[Path | Row], views: int, folder: str | Path, *, patches: bool
    ) -> None:
        self.pooled = torch.empty(views + 1, len(images), frozen.dim)
        self.patches: np.ndarray | None = None
        self.keeps_patches, self.file = patches, Path(folder) / "patches.npy"
        places = [(view, i) for view in range(views + 1) for i in range(len(images))]
        chunks = _chunks(places[len(images) :])
        shown = track(chunks, f"{frozen.label}, views", total=views * len(images), size=BATCH)
        for chunk, features in zip(_chunks(places[: len(images)]), frozen.evaluated(images, "train")):
            self._keep(chunk, features)
        for chunk, features in zip(chunks, frozen.views(images, shown, seed=0)):
            self._keep(chunk, features)

    def _keep(self, places: list[Place], features: Features) -> None:
        pooled, patches = features
        where = np.array(places).T
        self.pooled[tuple(torch.from_numpy(where))] = pooled.cpu()
        if self.keeps_patches:
            assert patches is not None
            if self.patches is None:
                shape = (*self.pooled.shape[:2], *patches.shape[1:])
                self.patches = np.lib.format.open_memmap(self.file, "w+", np.float16, shape)
            self.patches[tuple(where)] = patches.half().cpu().numpy()

    def views(self, pieces: Iterable[Sequence[Place]]) -> Iterator[Features]:
        """As `Frozen.views`, from what was computed."""
        for places in pieces:
            epochs, images = np.array(places).T
            which = epochs % len(self.pooled)
            patches = None if self.patches is None else torch.from_numpy(self.patches[which, images]).float()
            yield self.pooled[torch.from_numpy(which), torch.from_numpy(images)], patches


def _chunks(places: list[Place]) -> list[list[Place]]:
    return [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
