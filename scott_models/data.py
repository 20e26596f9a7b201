"""Images from folders and known data sets: found, with their labels and splits, opened, checked, turned upright."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import DataError, needs_extra

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # by a folder's name
SMALLEST_SIDE = 16  # pixels: one patch


@dataclass(frozen=True)
class Row:
    """An image that is no file of its own: item `index` of a data set, in its column (or place) `column`."""

    name: str
    dataset: Any
    index: int
    column: int | str

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def open(self) -> Image.Image:
        return self.dataset[self.index][self.column]


@dataclass(frozen=True)
class Sample:
    """One image of a data set, and what is known of it: its class and its split, "train", "val" or "test"."""

    image: Path | Row
    label: str | None = None
    split: str | None = None


def find_samples(sources: Sequence[str | Path], splits: Sequence[str] = ()) -> list[Sample]:
    """All images of the sources, in their order.

    Args:
        sources: folders, or "flowers102:ROOT" and "pets37:ROOT" (torchvision's data sets, already downloaded),
            "imagenet100:ROOT" (an ImageNet folder, of which the 100 classes are taken), "hf:NAME" (a data set of the
            Hugging Face Hub, or a folder that its `save_to_disk` wrote).
        splits: which splits to take; all images if empty. A folder's split is named by its first level,
            FOLDER/train/..., or by the folder itself; an image's class is the folder it lies in.

    Raises:
        DataError: no source, one that is not there or holds no image, or one without a split asked for.
    """
    if not sources:
        raise DataError("expected at least one folder of images, got none")
    samples = []
    for source in sources:
        kind, _, place = str(source).partition(":")
        found = READERS[kind](place) if kind in READERS and place else folder_samples(source)
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


def folder_samples(folder: str | Path) -> list[Sample]:
    """The images of a folder; a class is the folder an image lies in, unless that is `folder` or a split's folder."""
    root = Path(folder)
    samples = []
    for path in find_images([root]):
        inside = path.relative_to(root).parent.parts
        first = inside[0] if inside else ""
        split = SPLITS.get(first if first in SPLITS else root.resolve().name)
        label = inside[-1] if inside and inside[-1] not in SPLITS else None
        samples.append(Sample(path, label, split))
    return samples


def _imagenet100(root: str) -> list[Sample]:
    found = [sample for sample in folder_samples(root) if sample.label in imagenet100_classes()]
    if not found:
        raise DataError(f"{root}: expected an ImageNet folder with classes like n01440764, found none of the 100")
    return found


@cache
def imagenet100_classes() -> frozenset[str]:
    """The WordNet ids of the original's ImageNet-100."""
    return frozenset((Path(__file__).parent / "imagenet100_wnids.txt").read_text().split())


def _torchvision(kind: str, names: dict[str, str]) -> Callable[[str], list[Sample]]:
    """A reader of a torchvision data set, whose own `names` of splits are given with ours."""

    def read(root: str) -> list[Sample]:
        from torchvision import datasets

        samples = []
        for name, split in names.items():
            with needs_extra("data"):  # torchvision reads Flowers-102's labels with scipy
                try:
                    dataset = getattr(datasets, kind)(root, split=name)
                except RuntimeError as error:
                    raise DataError(f"{root}: expected torchvision's {kind} ({error})") from None
            labels = [dataset.classes[number] for number in dataset._labels]
            samples += [Sample(Row(f"{kind}:{name}", dataset, i, 0), label, split) for i, label in enumerate(labels)]
        return samples

    return read


def _hugging_face(name: str) -> list[Sample]:
    with needs_extra("data"):
        import datasets
    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # of many kinds: no such data set, no network, a damaged file
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
            labels = [dataset.features[label].int2str(number) for number in dataset[label]]
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
    """Every image file below the folders (flat, nested, or by class), sorted within each; a file stands for itself.

    Raises:
        DataError: no folder at all, or one that is not there or holds no image.
    """
    if not folders:
        raise DataError("expected at least one folder of images, got none")
    found = []
    for folder in map(Path, folders):
        if not folder.exists():
            raise DataError(f"{folder}: expected a folder of images, found nothing there")
        inside = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        inside = [path for path in inside if path.is_file()]
        if not inside:
            raise DataError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none in this folder or below")
        found += inside
    return found


def load_image(path: str | Path | Row, short_side: int | None = None) -> Image.Image:
    """One image, upright by its EXIF orientation, as RGB; transparency shows white, of an animation the first picture.

    Args:
        short_side: pixels that will do; a larger JPEG is then decoded at a half, a quarter or an eighth of its size,
            as long as that leaves twice as many.

    Raises:
        DataError: a file that is no image or is damaged, or an image smaller than one patch on a side.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable metadata; what cannot be read raises
            with path.open() if isinstance(path, Row) else Image.open(path) as file:
                if short_side:
                    file.draft(None, (2 * short_side, 2 * short_side))
                if file.mode in ("I", "F"):
                    raise DataError(f"{path}: expected 8 or 16 bits a channel, found 32; convert it to 8-bit RGB")
                image = _to_rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected an image, found a file that is none") from None
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damage makes decoders raise OSError, EOFError, SyntaxError, struct.error, ...
        raise DataError(f"{path}: expected a whole image, found a damaged one ({error})") from None
    if min(image.size) < SMALLEST_SIDE:
        raise DataError(
            f"{path}: expected at least {SMALLEST_SIDE} pixels on each side, found {image.width} x {image.height}"
        )
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would clip it to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
