"""What frozen features are worth: k nearest neighbours and a ridge classifier, beside the random-init control."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .data import find_images
from .errors import DataError
from .features import extract, load_model

NEIGHBOURS = 10
RIDGE_STRENGTHS = np.logspace(-1, 5, 13)


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy on the test images, in percent."""

    model: str
    img_size: int
    knn: float
    ridge: float


def probe(
    name: str,
    train: Sequence[str | Path],
    test: Sequence[str | Path],
    *,
    img_size: int | None = None,
    control: bool = True,
) -> list[Score]:
    """Score a model's frozen features, and those of the same model with random weights (seed 0).

    Every folder holds one folder of images a class. Pooled features go, normalised to length 1, to a majority vote of
    the 10 nearest training images by cosine; and, standardised, to a ridge classifier whose strength is chosen by
    leave-one-out on the training images alone.

    Args:
        name: any timm model, ours, or "local-dir:FOLDER".
        img_size: pixels; by default the size the weights were trained at.

    Raises:
        DataError: folders or files that cannot be used, or test classes that training lacks.
        WeightsError: a model that cannot be had.
    """
    train_paths, test_paths = find_images(train), find_images(test)
    train_labels, test_labels = labels_of(train_paths), labels_of(test_paths)
    if missing := sorted(set(test_labels.tolist()) - set(train_labels.tolist())):
        raise DataError(
            f"classes: expected each test class among the training classes, found no training images of {missing}"
        )
    scores = []
    for pretrained in (True, False) if control else (True,):
        torch.manual_seed(0)
        model = load_model(name, pretrained=pretrained, img_size=img_size)
        label = name if pretrained else f"{name} (random weights)"
        train_features, _ = extract(model, train_paths, img_size=img_size, what=f"{label}, train")
        test_features, _ = extract(model, test_paths, img_size=img_size, what=f"{label}, test")
        data = (train_features, train_labels, test_features)
        size = img_size or model.pretrained_cfg["input_size"][-1]
        accuracies = (100 * float(np.mean(predict(*data) == test_labels)) for predict in (knn, ridge))
        scores.append(Score(label, size, *accuracies))
    return scores


def labels_of(paths: Sequence[Path]) -> np.ndarray:
    """The class of each image: the name of its folder."""
    return np.array([path.parent.name for path in paths])


def knn(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Majority vote of the 10 nearest training features by cosine: (M, D), (M,), (n, D) -> (n,).

    Of classes with equally many votes the first in sorted order wins, as in scikit-learn.
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    similarity = F.normalize(torch.from_numpy(test), dim=1) @ F.normalize(torch.from_numpy(train), dim=1).T
    nearest = similarity.topk(min(NEIGHBOURS, len(train)), dim=1).indices
    votes = F.one_hot(torch.from_numpy(numbers)[nearest], len(classes)).sum(dim=1)
    return classes[votes.argmax(dim=1).numpy()]


def ridge(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Ridge classifier on standardised features: (M, D), (M,), (n, D) -> (n,).

    One -1/1 target a class; of RIDGE_STRENGTHS the one with the least squared leave-one-out error, which the singular
    values give without fitting again (as scikit-learn's RidgeClassifierCV does).
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    x, new = torch.from_numpy(train).double(), torch.from_numpy(test).double()
    mean, spread = x.mean(dim=0), x.std(dim=0, correction=0)
    spread[spread == 0] = 1
    x, new = (x - mean) / spread, (new - mean) / spread
    targets = 2.0 * F.one_hot(torch.from_numpy(numbers), len(classes)).double() - 1
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    centre = targets.mean(dim=0)
    projected = u.T @ (targets - centre)

    def leave_one_out(strength: float) -> float:
        shrink = (s**2 / (s**2 + strength))[:, None]
        left = 1 - 1 / len(x) - u.square() @ shrink  # how little of a prediction an image's own target makes
        return ((targets - centre - u @ (shrink * projected)) / left).square().mean().item()

    strength = min(RIDGE_STRENGTHS, key=leave_one_out)
    scores = new @ vh.T @ ((s / (s**2 + strength))[:, None] * projected) + centre
    return classes[scores.argmax(dim=1).numpy()]
