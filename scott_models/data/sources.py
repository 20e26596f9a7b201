"""Find images in folders and known data sets, with labels and splits; open and check them, and turn them upright."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, needs_extra

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # folder -> split
SMALLEST_SIDE = 16  # pixels: one patch


@dataclass(frozen=True)
class Row:
    """Refer to an image without a file of its own: row `index` of a Hugging Face data set, in column `column`."""

    name: str
    dataset: Any
    index: int
    column: str

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def open(self) -> Image.Image:
        return self.dataset[self.index][self.column]


@dataclass(frozen=True)
class Sample:
    """Describe one image of a data set: its class and its split "train", "val" or "test", each None if unknown."""

    image: Path | Row
    label: str | None = None
    split: str | None = None


def find_samples(sources: Sequence[str | Path], splits: Sequence[str] = ()) -> list[Sample]:
    """Find all images of the sources, in the order of the sources.

    Args:
        sources: folders, or "flowers102:ROOT" and "pets37:ROOT" (torchvision's data sets, already downloaded),
            "imagenet100:ROOT" (an ImageNet folder, of which the 100 classes are taken), "hf:NAME" (a data set of the
            Hugging Face Hub, or a folder written by its `save_to_disk`).
        splits: the splits to take; all images if empty. In a folder, the split is the name of the first level,
            FOLDER/train/..., or of the folder itself. An image's class is the folder that holds the image.

    Raises:
        DataError: no source is given, or a source does not exist, holds no image or lacks one of `splits`.
    """
    if not sources:
        raise DataError("expected at least one folder of images, got none")
    samples = []
    for source in sources:
        kind, _, place = str(source).partition(":")
        found = READERS[kind](place) if kind in READERS and place else find_folder_samples(source)
        if splits:
            known = {sample.split for sample in found if sample.split}
            if missing := set(splits) - known:
                raise DataError(
                    f"{source}: expected images of the splits {sorted(splits)}, found none of {sorted(missing)}"
                    f" (there are {sorted(known) or 'no splits'})"
                )
            found = [sample for sample in found if sample.split in splits]
        samples += found
    return samples


def find_folder_samples(folder: str | Path) -> list[Sample]:
    """Find the images of a folder. A class is the folder that holds an image, except `folder` or a split's folder."""
    root = Path(folder)
    samples = []
    for path in find_images([root]):
        inside = path.relative_to(root).parent.parts
        first = inside[0].lower() if inside else ""
        split = SPLITS.get(first if first in SPLITS else root.resolve().name.lower())
        label = inside[-1] if inside and inside[-1].lower() not in SPLITS else None
        samples.append(Sample(path, label, split))
    return samples


def _imagenet100(root: str) -> list[Sample]:
    found = [sample for sample in find_folder_samples(root) if sample.label in read_imagenet100_classes()]
    if not found:
        raise DataError(f"{root}: expected an ImageNet folder with classes like n01440764, found none of the 100")
    return found


@cache
def read_imagenet100_classes() -> frozenset[str]:
    """Read the WordNet ids of the 100 classes of the original's ImageNet-100."""
    return frozenset((Path(__file__).parents[1] / "imagenet100_wnids.txt").read_text().split())


def _torchvision(kind: str, names: dict[str, str]) -> Callable[[str], list[Sample]]:
    """Make a reader of a torchvision data set; `names` maps its names of splits to ours."""

    def read(root: str) -> list[Sample]:
        from torchvision import datasets

        samples = []
        for name, split in names.items():
            with needs_extra("data"):  # torchvision reads Flowers-102's labels with scipy
                try:
                    dataset = getattr(datasets, kind)(root, split=name)
                except RuntimeError as error:
                    raise DataError(f"{root}: expected torchvision's {kind} ({error})") from None
            files = dataset._image_files if kind == "Flowers102" else dataset._images
            labels = [dataset.classes[number] for number in dataset._labels]
            samples += [Sample(Path(file), label, split) for file, label in zip(files, labels)]
        return samples

    return read


def _hugging_face(name: str) -> list[Sample]:
    with needs_extra("data"):
        import datasets
    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # many kinds: no such data set, no network, a damaged file
        raise DataError(f"hf:{name}: cannot be loaded by datasets: {error}") from error
    splits = loaded if isinstance(loaded, dict) else {None: loaded}
    samples = []
    for split, dataset in splits.items():
        columns = {
            kind: [c for c, feature in dataset.features.items() if isinstance(feature, kind)]
            for kind in (datasets.Image, datasets.ClassLabel)
        }
        if not columns[datasets.Image]:
            raise DataError(f"hf:{name}: expected a column of images, found {sorted(dataset.features)}")
        image = columns[datasets.Image][0]
        labels: Sequence[str | None] = [None] * len(dataset)
        if columns[datasets.ClassLabel]:
            label = columns[datasets.ClassLabel][0]
            names = dataset.features[label].names
            labels = [None if number is None or number < 0 else names[number] for number in dataset[label]]
        row_name = f"hf:{name}:{split}:{dataset._fingerprint}"
        samples += [
            Sample(Row(row_name, dataset, i, image), text, SPLITS.get(str(split))) for i, text in enumerate(labels)
        ]
    return samples


READERS: dict[str, Callable[[str], list[Sample]]] = {
    "flowers102": _torchvision("Flowers102", {"train": "train", "val": "val", "test": "test"}),
    "pets37": _torchvision("OxfordIIITPet", {"trainval": "train", "test": "test"}),
    "imagenet100": _imagenet100,
    "hf": _hugging_face,
}


def find_images(folders: Sequence[str | Path]) -> list[Path]:
    """Find every image file below the folders (flat, nested, or by class), sorted within each; a file may be given too.

    Raises:
        DataError: no folder is given, or a folder does not exist or holds no image.
    """
    if not folders:
        raise DataError("expected at least one folder of images, got none")
    found = []
    for folder in map(Path, folders):
        if not folder.exists():
            raise DataError(f"{folder}: expected a folder of images, found nothing there")
        inside = [folder] if folder.is_file() else sorted(_files_below(folder))
        if not inside:
            raise DataError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none in this folder or below")
        found += inside
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder; follow links to folders, and visit each folder once."""
    seen = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        paths = (Path(name, file) for file in files)
        yield from (path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())


def load_image(path: str | Path | Row, short_side: int | None = None) -> Image.Image:
    """Load an image as RGB, turned upright by its EXIF orientation.

    Transparent pixels are shown on white. Of an animation only the first picture is loaded.

    Args:
        short_side: the pixels needed on the short side. A larger JPEG is then decoded at a half, a quarter or an
            eighth of its size, as long as each side keeps at least twice `short_side`.

    Raises:
        DataError: the file cannot be opened, is not an image or is damaged; or the image is too large for Pillow, has
            32 bits per channel, or is smaller than one patch on a side.
    """
    try:
        with path.open() if isinstance(path, Row) else Image.open(path) as file:
            if short_side:
                file.draft(None, (2 * short_side, 2 * short_side))
            if file.mode in ("I", "F"):
                raise DataError(f"{path}: expected 8 or 16 bits per channel, found 32; convert it to 8-bit RGB")
            image = _to_rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected an image, found another kind of file") from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: expected an image of a size that Pillow opens, found a larger one ({error})"
        ) from None
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from None
    except DataError:
        raise
    except Exception as error:  # damage makes decoders raise OSError, EOFError, SyntaxError, struct.error, ...
        raise DataError(f"{path}: expected a whole image, found a damaged one ({error})") from None
    if min(image.size) < SMALLEST_SIDE:
        raise DataError(
            f"{path}: expected at least {SMALLEST_SIDE} pixels on each side, found {image.width} x {image.height}"
        )
    return image


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress warnings about odd but readable files while many threads decode; unreadable files raise errors.

    Warning filters belong to the whole process, so a single thread must not change them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would clip it to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
