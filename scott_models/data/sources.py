"""Find images in folders and known data sets, with their classes and splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import DataError, needs_extra
from .files import find_images
from .images import Row

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # folder -> split


@dataclass(frozen=True)
class Sample:
    """Describe one image of a data set: its class and its split "train", "val" or "test", each None if unknown."""

    image: Path | Row
    label: str | None = None
    split: str | None = None


def find_samples(sources: Sequence[str | Path], splits: Sequence[str] = (), *, skip_bad: bool = False) -> list[Sample]:
    """Find all images of the sources, in the order of the sources.

    Args:
        sources: folders, or "flowers102:ROOT" and "pets37:ROOT" (torchvision's data sets, already downloaded),
            "imagenet100:ROOT" (an ImageNet folder, of which the 100 classes are taken), "hf:NAME" (a data set of the
            Hugging Face Hub, or a folder written by its `save_to_disk`).
        splits: the splits to take; all images if empty. `find_folder_samples` says what the splits and the classes of
            a folder are.
        skip_bad: leave out folders that cannot be entered, with a note, instead of raising.

    Raises:
        DataError: no source is given, or a source does not exist, holds no image, lacks one of `splits` or has folders
            that cannot be entered.
    """
    if not sources:
        raise DataError("expected at least one folder of images, got none")
    samples = []
    for source in sources:
        kind, _, place = str(source).partition(":")
        found = READERS[kind](place, skip_bad) if kind in READERS and place else find_folder_samples(source, skip_bad)
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


def find_folder_samples(folder: str | Path, skip_bad: bool = False) -> list[Sample]:
    """Find the images of a folder. A class is a folder of the first level, as for torchvision's ImageFolder.

    Folders named train, val (valid, validation) or test are splits, with the classes one level below, if all folders
    of the first level are named so, or two different splits are among them. Otherwise such a name is a class like any
    other: a folder may hold the classes train, bus and plane. In a folder that is named like a split itself, as
    DATA/train, all images belong to this split.
    """
    root = Path(folder)
    found = [(path, path.relative_to(root).parent.parts) for path in find_images([root], skip_bad=skip_bad)]
    own = SPLITS.get(root.resolve().name.lower())
    splits = _find_split_folders({inside[:2] for _, inside in found if inside}, bool(own))
    samples = []
    for path, inside in found:
        split, classes = (SPLITS[inside[0].lower()], inside[1:]) if inside[:1] in splits else (own, inside)
        samples.append(Sample(path, classes[0] if classes else None, split))
    return samples


def _find_split_folders(folders: set[tuple[str, ...]], inside_split: bool) -> set[tuple[str, ...]]:
    """Choose the folders of the first level that are splits.

    Args:
        folders: names of folders that hold images, up to the second level.
        inside_split: the folders lie in a folder that is named like a split itself.
    """
    first = {names[:1] for names in folders}
    named = {names for names in first if names[0].lower() in SPLITS}
    with_classes = {names[:1] for names in folders if len(names) == 2}
    if inside_split:
        return named if named == first == with_classes else set()
    several = len({SPLITS[names[0].lower()] for names in named}) > 1 and bool(named & with_classes)
    return named if named == first or several else set()


def _imagenet100(root: str, skip_bad: bool) -> list[Sample]:
    classes, samples = read_imagenet100_classes(), []
    for path in find_images([root], skip_bad=skip_bad):
        parts = path.relative_to(root).parent.parts
        if label := next((name for name in parts if name in classes), None):
            split = next(
                (SPLITS[name.lower()] for name in (*parts, Path(root).resolve().name) if name.lower() in SPLITS), None
            )
            samples.append(Sample(path, label, split))
    if not samples:
        raise DataError(f"{root}: expected an ImageNet folder with classes like n01440764, found none of the 100")
    return samples


@cache
def read_imagenet100_classes() -> frozenset[str]:
    """Read the WordNet ids of the 100 classes of the original's ImageNet-100."""
    return frozenset((Path(__file__).parents[1] / "imagenet100_wnids.txt").read_text(encoding="utf-8").split())


def _torchvision(kind: str, names: dict[str, str]) -> Callable[[str, bool], list[Sample]]:
    """Make a reader of a torchvision data set; `names` maps its names of splits to ours."""

    def read(root: str, skip_bad: bool) -> list[Sample]:
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


def _hugging_face(name: str, skip_bad: bool) -> list[Sample]:
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


READERS: dict[str, Callable[[str, bool], list[Sample]]] = {
    "flowers102": _torchvision("Flowers102", {"train": "train", "val": "val", "test": "test"}),
    "pets37": _torchvision("OxfordIIITPet", {"trainval": "train", "test": "test"}),
    "imagenet100": _imagenet100,
    "hf": _hugging_face,
}
