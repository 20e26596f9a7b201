"""Monitor a run by its features and by probes on them: the loss can fall while the features of all images collapse.

Every figure is compared with that of the same encoder before its first update (random weights, unless the run starts
from trained ones). In some data sets colours alone tell the classes apart, so a probe's score means nothing by itself.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..data.colours import normalize
from ..data.crops import make_centre_crops
from ..data.decoded import Images
from ..data.labelled import hold_out
from ..probes.classifiers import Accuracy, knn, ridge
from ..progress import track
from ..training.settings import require
from .recipe import Recipe

T = TypeVar("T")
BATCH = 64
DEAD_RANK, DEAD_SPREAD = 2.0, 0.02
COLLAPSED_SHARE = 0.5  # of the RankMe or the spread before the first update
SHARE_OF_DEVICE = 0.1  # largest share of a GPU's free memory for the crops
PATIENCE = 3  # looks without a higher kNN score, after which advice is given


@dataclass(frozen=True)
class Health:
    """Hold the monitor's measurements of frozen, average-pooled features of images.

    For rankme, spread and cosine, None becomes NaN: metrics.jsonl holds null for NaN, which JSON does not have.

    Attributes:
        rankme: effective number of dimensions used, 1 to D (Garrido and others, 2023): exp of the entropy of the
            normalised singular values.
        spread: standard deviation over images of the features scaled to length 1, times sqrt(D), mean over dimensions:
            1 if the features point in all directions equally, 0 if all are the same.
        cosine: mean cosine similarity between two images, -1 to 1.
        knn, ridge: top-1 accuracy on the held-out images, %; None without labels.
    """

    rankme: float
    spread: float
    cosine: float
    knn: float | None = None
    ridge: float | None = None

    def __post_init__(self) -> None:
        for name in ("rankme", "spread", "cosine"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, math.nan)  # the dataclass is frozen

    @classmethod
    def of(cls, features: Tensor) -> "Health":
        """Compute rankme, spread and cosine of features (n, D)."""
        count, dim = features.shape
        share = torch.linalg.svdvals(features.double())
        share = share / share.sum()
        rankme = torch.exp(-torch.special.xlogy(share, share).sum())
        unit = nn.functional.normalize(features.double(), dim=1)
        spread = unit.std(dim=0, correction=0).mean() * dim**0.5
        cosine = (unit.sum(dim=0).square().sum() - count) / (count * (count - 1))
        return cls(rankme.item(), spread.item(), cosine.item())

    def better_than(self, other: "Health") -> bool:
        """Tell whether kNN, or without labels RankMe, is higher than in `other`."""
        return self.rankme > other.rankme if self.knn is None or other.knn is None else self.knn > other.knn


BROKEN = Health(rankme=0.0, spread=0.0, cosine=1.0)  # for NaN or infinite features; else RankMe is at least 1


def judge(now: Health, control: Health, start: str = "random weights") -> str:
    """Return a verdict in one line: healthy, partial collapse or dead, with the figures behind it.

    Args:
        now: the latest measurement.
        control: the measurement before the first update.
        start: the weights before the first update, in words.
    """
    figures = f"RankMe {now.rankme:.1f} ({control.rankme:.1f}), spread {now.spread:.2f} ({control.spread:.2f})"
    figures += f", mean cosine {now.cosine:.2f} ({control.cosine:.2f})"
    gains = None  # of the probe that gained more
    if now.knn is not None and now.ridge is not None and control.knn is not None and control.ridge is not None:
        figures += f", kNN {now.knn:.1f} ({control.knn:.1f}), ridge {now.ridge:.1f} ({control.ridge:.1f})"
        gains = max(now.knn - control.knn, now.ridge - control.ridge)
    figures += f"; in brackets: {start}"
    narrow = now.rankme < COLLAPSED_SHARE * control.rankme or now.spread < COLLAPSED_SHARE * control.spread
    if not np.isfinite(now.rankme) or now.rankme < DEAD_RANK or now.spread < DEAD_SPREAD:
        return f"dead, all images have nearly the same features: {figures}"
    if narrow and (gains is None or gains <= 0):
        return f"partial collapse, few directions are used (usual in the first epochs, bad if it stays): {figures}"
    if gains is not None and gains <= 0:
        return f"healthy features, but no better than {start} yet: {figures}"
    return f"healthy: {figures}"


def give_advice(health: dict[int, Health]) -> str:
    """Return advice to finish the run if kNN rose above its start, but not in the last looks; otherwise "".

    Args:
        health: the monitor's results by update; 0 is before the first update.
    """
    found = [look.knn for _, look in sorted(health.items())]
    scores = [score for score in found if score is not None]
    best = max(range(len(scores)), key=scores.__getitem__, default=0)
    if len(scores) < len(found) or not 0 < best < len(scores) - PATIENCE:
        return ""
    return f"; kNN has not risen for {len(scores) - 1 - best} looks: stop the run by Ctrl-C and finish it by --finish"


class Monitor:
    """Measure an encoder on a fixed sample of images.

    Images of a test split are left out, unless there are no others or `monitor.test` of the recipe is set; the probes
    are then scored on the test split. Labels are used if every image has one and there are at least two classes. One
    in five images of each class, and at least one, is then held out to score the probes; the others train them. Exact
    copies of an earlier image are never chosen. Crops are made once. A GPU keeps them if they need at most 0.1 of its
    free memory.

    Args:
        images: images of the run.
        recipe: gives the image size, the seed and the settings of the monitor.
        device: device of the forward passes.
        autocast: function that returns the context of the forward passes.
        watches: False in all processes but the first; they make no crops.

    Raises:
        RecipeError: `monitor.test` is set, but there are no labelled images of a test split.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        *,
        watches: bool = True,
    ) -> None:
        self.device, self.autocast = device, autocast
        rng = np.random.default_rng(recipe.run.seed)
        self.train, self.held_out = choose_images(images, recipe.monitor.images, recipe.monitor.test, rng)
        names, numbers = np.unique([str(sample.label) for sample in images.samples], return_inverse=True)
        self.classes, labels = len(names), torch.from_numpy(numbers)
        self.train_labels, self.held_out_labels = labels[self.train], labels[self.held_out]
        if watches and recipe.monitor.every:
            crops = make_crops(images, [*self.train, *self.held_out], recipe.model.img_size)
            fits = device.type == "cuda" and crops.nbytes <= SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]
            self.crops = crops.to(device) if fits else crops

    @torch.no_grad()
    def __call__(self, encoder: Any) -> Health:
        """Measure the encoder in eval mode; its training or eval mode is restored afterwards."""
        was_training = encoder.training
        encoder.eval()
        pooled = []
        for crops in track(self.crops.split(BATCH), "monitoring", total=len(self.crops), size=BATCH):
            with self.autocast():
                features = encoder.forward_features(normalize(crops.to(self.device).float() / 255))
            pooled.append(features.float().mean(dim=1).cpu())
        encoder.train(was_training)
        features = torch.cat(pooled)
        health = Health.of(features) if features.isfinite().all() else BROKEN
        if not self.held_out or not features.isfinite().all():
            return health
        train, test = features[: len(self.train)], features[len(self.train) :]
        scores = (classify(train, self.train_labels, test, self.classes) for classify in (knn, ridge))
        accuracies = (Accuracy.of(each, self.held_out_labels).top1 for each in scores)
        return Health(health.rankme, health.spread, health.cosine, *accuracies)


def make_crops(images: Images, chosen: Sequence[int], size: int) -> Tensor:
    """Crop the chosen images to their central squares: uint8 (n, 3, size, size)."""
    crops = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
    starts = range(0, len(chosen), BATCH)
    for start in track(starts, "cropping", total=len(chosen), size=BATCH):
        some = chosen[start : start + BATCH]
        crops[start : start + len(some)] = make_centre_crops([images[i] for i in some], size)
    return crops


def choose_images(images: Images, count: int, test: bool, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Choose the images that train the probes and those that score them; return the indices of both.

    Without usable labels, all chosen images are in the first list.

    Args:
        count: largest number of images; with `test`, of each list.
        test: score the probes on the test split.

    Raises:
        RecipeError: `test` is True, but there are no labelled images of a test split.
    """
    order = [int(i) for i in rng.permutation(len(images)) if not images.copies[i]]
    samples = images.samples
    usable = [i for i in order if samples[i].split != "test"] or order
    classes: dict[str | None, list[int]] = {}
    for i in usable:
        classes.setdefault(samples[i].label, []).append(i)
    classes = {label: members for label, members in classes.items() if len(members) > 1}
    scored_on_test = [i for i in order if samples[i].split == "test" and samples[i].label in classes][:count]
    require(not test or len(scored_on_test) > 0, "monitor.test", "labelled images of a test split among --data", test)
    if len(classes) < 2 or any(samples[i].label is None for i in usable):
        return usable[:count], []
    each = max(2, count // len(classes))
    chosen = [members[:each] for members in list(classes.values())[: count // 2]]
    if test:
        return [i for members in chosen for i in members], scored_on_test
    train, held_out = zip(*map(hold_out, chosen))
    return list(chain(*train)), list(chain(*held_out))


def pick_evenly(items: Sequence[T], count: int) -> list[T]:
    """Pick at most `count` of the items, at even distances."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)
