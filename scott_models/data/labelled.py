"""Images with their classes, for training and for testing."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..console import say
from ..errors import DataError
from .bad_images import leave_out_bad
from .images import Row
from .sources import SPLITS, Sample, find_samples

T = TypeVar("T")
Role = Literal["train", "test"]
ROLES: dict[Role, tuple[str, ...]] = {"train": ("train", "val"), "test": ("test",)}
NAMED = 5  # the most classes that a message lists
HELD_OUT = 5  # one image in five is held out


@dataclass(frozen=True)
class Labelled:
    """Hold images and their labels: int64 (n,), indices into the class `names`."""

    images: Sequence[Path | Row]
    labels: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def only(self, chosen: Tensor) -> "Labelled":
        """Return the images with the indices `chosen`, int64 (k,), and their labels."""
        return Labelled([self.images[i] for i in chosen.tolist()], self.labels[chosen], self.names)

    @classmethod
    def of(cls, samples: Sequence[Sample], names: Sequence[str]) -> "Labelled":
        number = {name: i for i, name in enumerate(names)}
        return cls(
            [sample.image for sample in samples],
            torch.tensor([number[str(sample.label)] for sample in samples]),
            list(names),
        )


def find_labelled(
    train: Sequence[str | Path], test: Sequence[str | Path], *, skip_bad: bool = False
) -> tuple[Labelled, Labelled]:
    """Find the training and the test images, with classes numbered in alphabetical order.

    A source is a folder with one folder per class, or a data set. From a source that has splits, training takes train
    and val, and testing takes test. So both may use the same source.

    Args:
        skip_bad: decode every image, and leave out the bad ones and folders that cannot be entered, with a note.

    Raises:
        DataError: images have no class, there are fewer than two classes, training lacks a test class, or a source has
            splits but not those of its role.
    """
    samples = {
        "train": _find_role_samples(train, "train", skip_bad),
        "test": _find_role_samples(test, "test", skip_bad),
    }
    _note_common(samples["train"], samples["test"])
    names = {role: {str(sample.label) for sample in found} for role, found in samples.items()}
    if missing := sorted(names["test"] - names["train"]):
        raise DataError(
            "classes: expected each test class among the training classes, "
            f"found no training images of {_list_names(missing)}"
        )
    if len(names["train"]) < 2:
        raise DataError(f"classes: expected at least two, found {sorted(names['train'])}")
    if missing := sorted(names["train"] - names["test"]):
        say(f"note: no test images of {_list_names(missing)}")
    counts = Counter(str(sample.label) for sample in samples["train"])
    if single := sorted(name for name, count in counts.items() if count == 1):
        say(
            f"note: a single training image of {_list_names(single)}; "
            "no image of such a class is held out to choose settings"
        )
    ordered = sorted(names["train"])
    return Labelled.of(samples["train"], ordered), Labelled.of(samples["test"], ordered)


def find_labelled_unsplit(sources: Sequence[str | Path], *, skip_bad: bool = False) -> Labelled:
    """Find all images of the sources, of every split; there must be at least two classes.

    Args:
        skip_bad: as for `find_labelled`.

    Raises:
        DataError: images have no class, there are fewer than two classes, or no class has two images.
    """
    samples = _find_role_samples(sources, None, skip_bad)
    counts = Counter(str(sample.label) for sample in samples)
    names = sorted(counts)
    if len(names) < 2 or max(counts.values()) < 2:
        raise DataError(f"classes: expected at least two, one of them with two images, found {_list_names(names)}")
    return Labelled.of(samples, names)


def _find_role_samples(sources: Sequence[str | Path], role: Role | None, skip_bad: bool) -> list[Sample]:
    samples = []
    for source in sources:
        found = find_samples([source], skip_bad=skip_bad)
        if role and Path(source).resolve().name.lower() not in SPLITS:  # a folder DATA/val may be the test images
            found = _choose_splits(source, found, role)
        if unlabelled := [sample for sample in found if sample.label is None]:
            raise DataError(
                f"{source}: expected a folder of images for each class, found {len(unlabelled)} of {len(found)} images "
                f"without a class, e.g. {unlabelled[0].image}"
            )
        samples += found
    if not samples:
        raise DataError("expected at least one folder of images, got none")
    if skip_bad:
        samples = [samples[i] for i in leave_out_bad([sample.image for sample in samples])]
    return samples


def _choose_splits(source: str | Path, samples: list[Sample], role: Role) -> list[Sample]:
    """Return the images of a role's splits; all images of a source without splits."""
    there = sorted({sample.split for sample in samples if sample.split})
    unsplit = len(there) == 1 and isinstance(samples[0].image, Row)  # datasets calls images without splits "train"
    if not there or unsplit:
        return samples
    chosen = [sample for sample in samples if sample.split in ROLES[role]]
    if not chosen:
        raise DataError(
            f"{source}: expected images of the split {' or '.join(ROLES[role])} for --{role}, found only {there}; name "
            f"the folder to use, such as {source}/{there[0]}"
        )
    if outside := sum(sample.split is None for sample in samples):
        say(f"note: {source}: {outside} images belong to no split and are left out")
    return chosen


def _note_common(train: Sequence[Sample], test: Sequence[Sample]) -> None:
    """Print a note if test images are also training images."""
    trained = {_identify(sample.image) for sample in train}
    if common := sum(_identify(sample.image) in trained for sample in test):
        say(f"note: {common} of {len(test)} test images are training images too; their scores are too good")


def _identify(image: Path | Row) -> str:
    return os.path.realpath(image) if isinstance(image, Path) else str(image)


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{list(names[:NAMED])}{more}"


def hold_out(members: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Split the images of a class, at least two, into four fifths to train on and one fifth to score.

    The first images are scored: at least one, and never all.
    """
    scored = min(max(1, len(members) // HELD_OUT), len(members) - 1)
    return members[scored:], members[:scored]
