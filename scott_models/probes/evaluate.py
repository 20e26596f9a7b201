"""Probes on the frozen features of any timm model, compared with random weights, and retrieval without training.

There are two protocols. `paper` (Appendix E) trains heads for 100 epochs, with a fresh augmented view of every image
in each epoch. `fast` computes the features of a few augmented views once. It trains the attentive head on them for as
many epochs, and solves for the linear head. docs/evaluation.md describes both protocols.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..console import say
from ..data.bad_images import all_bad_listed
from ..data.duplicates import Duplicates, find_duplicates
from ..data.labelled import Labelled, find_labelled, find_labelled_unsplit
from ..errors import DataError
from ..models.scott import SCOTT
from ..weights.local_dir import check_export_folder
from .classifiers import Accuracy, count_confusions, knn, ridge, score_retrieval
from .export import export_classifier
from .features import check_npz_path, load_model, save_npz
from .frozen import Cache, Frozen
from .heads import AttentiveHead, Head, LinearHead, select_features, solve_linear, train_heads
from .pixel_cache import PixelCache

Protocol = Literal["fast", "paper"]
Kind = Literal["knn", "ridge", "linear", "attentive"]
KINDS: tuple[Kind, ...] = ("knn", "ridge", "linear", "attentive")
EPOCHS = 100  # of heads trained by gradient steps
VIEWS = 2  # augmented views of every training image, computed by `fast`
CLASSIFIERS = {"knn": knn, "ridge": ridge}
HEADS = ("linear", "attentive")


@dataclass(frozen=True)
class Score:
    """Describe the accuracy of one probe on the test images after the last epoch, in percent: means over the seeds.

    Attributes:
        spread: standard deviation of top1 over the seeds; None for a single seed.
        per_class: accuracy of each class, averaged over the classes.
    """

    model: str
    img_size: int
    probe: str
    top1: float
    spread: float | None
    top5: float | None
    per_class: float
    seeds: int

    @classmethod
    def of(cls, model: str, img_size: int, probe: str, each: Sequence[Accuracy]) -> "Score":
        """Average the accuracies of all seeds."""
        top1 = [accuracy.top1 for accuracy in each]
        top5 = [accuracy.top5 for accuracy in each if accuracy.top5 is not None]
        return cls(
            model,
            img_size,
            probe,
            mean(top1),
            stdev(top1) if len(top1) > 1 else None,
            mean(top5) if top5 else None,
            mean(accuracy.per_class for accuracy in each),
            len(each),
        )


@dataclass(frozen=True)
class Confusions:
    """Describe which classes a probe confuses on the test images: of the model, not its control, for the first seed.

    Attributes:
        of_classes: top-1 % of each class; None for a class without test images.
        mistaken: [true class, predicted class, number of images] of each confused pair; classes are numbers.
    """

    probe: str
    of_classes: list[float | None]
    mistaken: list[list[int]]

    @classmethod
    def of(cls, probe: str, matrix: Tensor) -> "Confusions":
        """Summarise a confusion matrix (classes, classes) from `count_confusions`."""
        totals, right = matrix.sum(dim=1).tolist(), matrix.diag().tolist()
        wrong = matrix - matrix.diag().diag()
        pairs = [[i, j, int(wrong[i, j])] for i, j in wrong.nonzero().tolist()]
        return cls(probe, [100 * hits / total if total else None for hits, total in zip(right, totals)], pairs)


@dataclass(frozen=True)
class Report:
    """Hold all scores, their protocol, and facts of the images.

    Attributes:
        train, test: numbers of images.
        names: names of the classes, by number.
        test_images: number of test images of each class.
    """

    scores: list[Score]
    protocol: Protocol
    train: int
    test: int
    classes: int
    duplicates: Duplicates | None
    names: list[str]
    test_images: list[int]
    confusions: list[Confusions]


@dataclass(frozen=True)
class Retrieval:
    """Describe mean average precision, in percent: mean and standard deviation over the seeds of random weights."""

    model: str
    img_size: int
    mean_ap: float
    spread: float | None
    images: int
    classes: int


def probe(
    name: str,
    train: Sequence[str | Path],
    test: Sequence[str | Path],
    *,
    kinds: Sequence[Kind] = KINDS,
    protocol: Protocol = "fast",
    seeds: int | Sequence[int] = 1,
    img_size: int | None = None,
    control: bool = True,
    duplicates: bool = True,
    export: str | Path | None = None,
    features: str | Path | None = None,
    skip_bad: bool = False,
) -> Report:
    """Score probes on a model's frozen features of labelled images, and on those of the same model with random weights.

    - knn: majority vote of the 10 nearest training images by cosine of pooled features.
    - ridge: ridge classifier on standardised pooled features; its strength is chosen by leave-one-out on the training
      images.
    - linear: LayerNorm and a linear layer on pooled features (SCOTT: the average of its patches).
    - attentive: a learned query attends to the patches; SwiGLU and a linear layer follow.

    Args:
        name: any timm model, ours, "local-dir:FOLDER", or the folder of a run.
        train, test: sources, as `find_samples` takes them; a source with splits may be given for both.
        seeds: the number of seeds, from 0, or the seeds themselves. A seed determines the initial heads, the order of
            images, the images held out to choose settings, the views of `paper`, and the weights of the control.
        img_size: pixels; by default the size the weights were trained at.
        control: whether random weights are scored too.
        duplicates: whether to search for test images among the training images.
        export: a folder for the model with the attentive head of the first seed, or with the linear head if there is
            no attentive head. Models of other families take the linear head.
        features: an .npz file for the pooled features behind the model's scores. `train` (views, M, D) has the images
            as they are and then, under `fast` with a head, augmented views; `test` is (n, D). Both have `_labels`,
            numbers of `classes`, and `_images`, names of the images.
        skip_bad: leave out images that cannot be used, with a note, instead of raising; this decodes images twice.

    Raises:
        DataError: a folder or file cannot be used, training lacks a test class, the model cannot take the size, or only
            the attentive probe is requested for a model without patches.
        WeightsError: the model cannot be loaded.
    """
    chosen = _check_seeds(seeds)
    if not kinds:
        raise DataError(f"probes: expected at least one of {[*KINDS]}, got none")
    export = check_export_folder(export) if export else None
    if export and not {*HEADS} & {*kinds}:
        raise DataError(f"export: expected one of {[*HEADS]} among the probes, got {list(kinds)}")
    features = check_npz_path(features) if features else None
    trained, tested = find_labelled(train, test, skip_bad=skip_bad)
    with all_bad_listed([*trained.images, *tested.images]):
        copies = find_duplicates(trained.images, tested.images) if duplicates else None
        if copies is not None:
            say(f"duplicates: {copies}")
        trained, tested = (replace(part, images=PixelCache(part.images)) for part in (trained, tested))
        scores, confusions = [], []
        for label, models in _list_models(name, img_size, chosen, control):
            results: dict[Kind, list[Accuracy]] = {}
            for model, its_seeds in models:
                frozen = Frozen(model, label, img_size)
                takes_any_head = isinstance(model, SCOTT)
                possible = _select_kinds(kinds, frozen)
                if export and not takes_any_head and "linear" not in possible:
                    raise DataError(f"export: expected the linear probe too, the only one with a head that fits {name}")
                setup = Setup(trained, tested, possible, protocol, norm=not export or takes_any_head)
                heads, pooled = setup.heads(frozen, its_seeds)
                if pooled is None:
                    pooled = frozen.pooled(trained.images, "train")[None]
                outcome = setup.outcome(frozen, heads, pooled[0], its_seeds)
                for kind, found in outcome.accuracies.items():
                    results.setdefault(kind, []).extend(found)
                if label == name:
                    confusions += [Confusions.of(kind, matrix) for kind, matrix in outcome.confusions.items()]
                if features and label == name:
                    save_npz(features, **setup.arrays(pooled, outcome.features))
                if export and label == name:
                    best: Kind = "attentive" if takes_any_head and "attentive" in possible else "linear"
                    size = frozen.config["input_size"]
                    folder = export_classifier(model, heads[best, chosen[0]], trained.names, export, size)
                    usage = f"timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"
                    say(f"exported with the {best} head: {usage}")
            scores += [Score.of(label, frozen.size, kind, accuracies) for kind, accuracies in results.items()]
    counts = torch.bincount(tested.labels, minlength=len(trained.names)).tolist()
    names = trained.names
    return Report(scores, protocol, len(trained), len(tested), len(names), copies, [*names], counts, confusions)


def retrieve(
    name: str,
    sources: Sequence[str | Path],
    *,
    seeds: int = 1,
    img_size: int | None = None,
    control: bool = True,
    skip_bad: bool = False,
) -> list[Retrieval]:
    """Compute the mean average precision of finding an image's class among all others by cosine, without training.

    Args:
        sources: labelled images of all splits, as `find_samples` takes them.
        seeds: number of seeds for the control's random weights.
        skip_bad: leave out images that cannot be used, with a note, instead of raising; this decodes images twice.

    Raises:
        DataError: an image has no class, there are fewer than two classes, or no class has two images.
        WeightsError: the model cannot be loaded.
    """
    labelled = find_labelled_unsplit(sources, skip_bad=skip_bad)
    images = PixelCache(labelled.images)
    rows = []
    with all_bad_listed(labelled.images):
        for label, models in _list_models(name, img_size, _check_seeds(seeds), control):
            found = []
            for model, _ in models:
                frozen = Frozen(model, label, img_size)
                found.append(score_retrieval(frozen.pooled(images, "images"), labelled.labels))
            spread = stdev(found) if len(found) > 1 else None
            rows.append(Retrieval(label, frozen.size, mean(found), spread, len(images), len(labelled.names)))
    return rows


def _check_seeds(seeds: int | Sequence[int]) -> Sequence[int]:
    """Return the seeds if they were given, or else this number of seeds from 0."""
    chosen = range(seeds) if isinstance(seeds, int) else [*seeds]
    if not chosen:
        raise DataError(f"seeds: expected at least 1, got {seeds}")
    return chosen


def _list_models(
    name: str, img_size: int | None, seeds: Sequence[int], control: bool
) -> Iterator[tuple[str, Iterable[tuple[nn.Module, Sequence[int]]]]]:
    """Yield the label of the model, then of its control, each with models and the seeds that they are probed with."""
    yield name, [(load_model(name, img_size=img_size), seeds)]
    if control:
        yield f"{name} (random weights)", ((make_random_weights(name, img_size, seed), [seed]) for seed in seeds)


def make_random_weights(name: str, img_size: int | None, seed: int) -> nn.Module:
    """Create the control: the same model before any training."""
    torch.manual_seed(seed)
    return load_model(name, pretrained=False, img_size=img_size)


def _select_kinds(kinds: Sequence[Kind], frozen: Frozen) -> list[Kind]:
    """Select the probes whose features the model has."""
    if frozen.has_patches or "attentive" not in kinds:
        return list(kinds)
    message = f"attentive: expected a model with patch tokens, found that {frozen.label} has none"
    if len(kinds) == 1:
        raise DataError(message)
    say(f"note: {message}; this probe is left out")
    return [kind for kind in kinds if kind != "attentive"]


@dataclass(frozen=True)
class Outcome:
    """Hold the results of a model's probes on the test images.

    Attributes:
        accuracies: of each kind, for every seed.
        confusions: the confusion matrix of each kind for the first seed, int64 (classes, classes).
        features: pooled features of the test images (n, D).
    """

    accuracies: dict[Kind, list[Accuracy]]
    confusions: dict[Kind, Tensor]
    features: Tensor


@dataclass(frozen=True)
class Setup:
    """Hold what all models of a comparison are probed with, and probe them.

    Attributes:
        norm: whether the linear head begins with a LayerNorm.
    """

    trained: Labelled
    tested: Labelled
    kinds: list[Kind]
    protocol: Protocol
    norm: bool = True

    def heads(self, frozen: Frozen, seeds: Sequence[int]) -> tuple[dict[tuple[Kind, int], Head], Tensor | None]:
        """Fit a linear and an attentive head for every seed, as far as `kinds` has them.

        Returns:
            the heads by kind and seed; and pooled features (views, M, D) if `fast` computed them, or else None.
        """
        kinds = [kind for kind in self.kinds if kind in HEADS]
        heads: dict[tuple[Kind, int], Head] = {}
        if not kinds:
            return heads, None
        frozen.require_squares()
        images, labels = self.trained.images, self.trained.labels
        with tempfile.TemporaryDirectory(prefix="scott_models-") as folder:
            cache = None
            if self.protocol == "fast":
                cache = Cache(frozen, images, VIEWS, folder, patches="attentive" in kinds)
            for seed in seeds:
                torch.manual_seed(seed)
                made = {kind: self._make_head(kind, frozen) for kind in kinds}
                if cache and "linear" in made:
                    solve_linear(made["linear"], cache.pooled, labels, seed, f"{frozen.label}, linear")
                by_gradient = [head for kind, head in made.items() if kind == "attentive" or not cache]
                if by_gradient:
                    views = cache.views if cache else partial(frozen.views, images, seed=seed)
                    places_on = labels.to(cache.device) if cache else labels
                    train_heads(by_gradient, views, places_on, epochs=EPOCHS, seed=seed, what=f"{frozen.label}, heads")
                heads |= {(kind, seed): head for kind, head in made.items()}
        return heads, cache.pooled.cpu() if cache else None

    def _make_head(self, kind: Kind, frozen: Frozen) -> Head:
        classes = len(self.trained.names)
        head = (
            LinearHead(frozen.dim, classes, norm=self.norm) if kind == "linear" else AttentiveHead(frozen.dim, classes)
        )
        return head.to(frozen.device)

    @torch.no_grad()
    def outcome(
        self, frozen: Frozen, heads: dict[tuple[Kind, int], Head], train: Tensor, seeds: Sequence[int]
    ) -> Outcome:
        """Score each kind of probe on the test images.

        Args:
            train: pooled features of the training images (M, D).
        """
        pooled = []
        logits: dict[tuple[Kind, int], list[Tensor]] = {place: [] for place in heads}
        for features in frozen.evaluated(self.tested.images, "test"):
            pooled.append(features[0])
            for place, head in heads.items():
                logits[place].append(head(select_features(head, *features)))
        test, labels = torch.cat(pooled).cpu(), self.tested.labels
        scores = {place: torch.cat(batches).cpu() for place, batches in logits.items()}
        for kind in self.kinds:
            if kind in CLASSIFIERS:
                solved = CLASSIFIERS[kind](train, self.trained.labels, test, len(self.trained.names))
                scores |= {(kind, seed): solved for seed in seeds}
        return Outcome(
            {kind: [Accuracy.of(scores[kind, seed], labels) for seed in seeds] for kind in self.kinds},
            {kind: count_confusions(scores[kind, seeds[0]], labels) for kind in self.kinds},
            test,
        )

    def arrays(self, train: Tensor, test: Tensor) -> dict[str, np.ndarray]:
        """Collect features, labels, class names and image names for an .npz file."""
        arrays = {"train": train.numpy(), "test": test.numpy(), "classes": np.array(self.trained.names)}
        for role, images in (("train", self.trained), ("test", self.tested)):
            arrays[f"{role}_labels"] = images.labels.numpy()
            arrays[f"{role}_images"] = np.array([str(image) for image in images.images])
        return arrays
