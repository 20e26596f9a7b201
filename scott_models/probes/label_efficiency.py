"""Label efficiency: accuracy against the number of labelled images per class, compared with random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from ..data.bad_images import all_bad_listed
from ..data.files import check_outside
from ..data.labelled import Labelled, find_labelled
from ..errors import DataError, needs_extra
from ..progress import track
from ..writing import written_whole
from .classifiers import NEIGHBOURS, Accuracy, knn
from .evaluate import make_random_weights
from .features import load_model
from .frozen import Frozen
from .heads import LinearHead, solve_linear
from .pixel_cache import PixelCache


@dataclass(frozen=True)
class Point:
    """Describe top-1 accuracy on the test images, in percent, as mean and standard deviation over draws of images.

    Attributes:
        images: labelled training images per class, on average over the classes; the last point has all images.
    """

    model: str
    probe: str
    images: float
    top1: float
    spread: float | None
    draws: int


def measure_label_efficiency(
    names: Sequence[str],
    train: Sequence[str | Path],
    test: Sequence[str | Path],
    *,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 5,
    img_size: int | None = None,
    control: bool = True,
    skip_bad: bool = False,
) -> list[Point]:
    """Score nearest neighbours and a linear layer on pooled features of a few training images per class, and of all.

    The few images are drawn several times; features are computed once. There are as many neighbours as images per
    class, at most 10. The linear layer is LayerNorm and logistic regression. Its strength is chosen on a fifth of the
    drawn images, and is 1 for a single image per class.

    Args:
        names: models to compare, as `probe` takes them.
        shots: numbers of images per class; a class with fewer images gives all it has.
        control: whether random weights (seed 0) of the first model are scored too.
        skip_bad: leave out images that cannot be used, with a note, instead of raising; this decodes images twice.

    Raises:
        DataError: as in `probe`; or shots or draws are below 1.
        WeightsError: a model cannot be loaded.
    """
    if draws < 1 or min(shots, default=0) < 1:
        raise DataError(f"shots, draws: expected at least 1 each, got {list(shots)} and {draws}")
    trained, tested = find_labelled(train, test, skip_bad=skip_bad)
    models = {name: load_model(name, img_size=img_size) for name in names}
    if control:
        models[f"{names[0]} (random weights)"] = make_random_weights(names[0], img_size, 0)
    kept = PixelCache(trained.images), PixelCache(tested.images)
    features = {}
    with all_bad_listed([*trained.images, *tested.images]):
        for label, model in models.items():
            frozen = Frozen(model, label, img_size)
            of_train, of_test = (frozen.pooled(part, role) for part, role in zip(kept, ("train", "test")))
            features[label] = of_train, of_test
    counts = torch.bincount(trained.labels, minlength=len(trained.names))
    wanted = [(count, draw) for count in sorted(set(shots)) if count < counts.max() for draw in range(draws)]
    wanted.append((int(counts.max()), 0))
    found: dict[tuple[str, str, float], list[float]] = {}
    for count, draw in track(wanted, "curve", total=len(wanted), unit="draws"):
        chosen = sample_few(trained.labels, count, draw)
        images = len(chosen) / len(trained.names)
        for label, (of_train, of_test) in features.items():
            each = compute_accuracies(of_train[chosen], trained.only(chosen), of_test, tested, count, draw)
            for probe, top1 in each.items():
                found.setdefault((label, probe, images), []).append(top1)
    return [
        Point(label, probe, images, mean(each), stdev(each) if len(each) > 1 else None, len(each))
        for (label, probe, images), each in found.items()
    ]


def sample_few(labels: Tensor, count: int, seed: int) -> Tensor:
    """Sample `count` images of every class, or all of a smaller class: labels (M,) -> sorted indices, int64 (k,)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = [order[labels[order] == name][:count] for name in labels.unique()]
    return torch.cat(chosen).sort().values


def compute_accuracies(
    features: Tensor, trained: Labelled, test: Tensor, tested: Labelled, count: int, seed: int
) -> dict[str, float]:
    """Compute the top-1 accuracy of both probes, in percent, by name."""
    classes = len(trained.names)
    votes = knn(features, trained.labels, test, classes, min(NEIGHBOURS, count))
    head = LinearHead(features.shape[1], classes)
    solve_linear(head, features[None], trained.labels, seed)
    with torch.no_grad():
        logits = head(test)
    return {name: Accuracy.of(scores, tested.labels).top1 for name, scores in (("knn", votes), ("linear", logits))}


def draw_curve(points: Sequence[Point], file: Path) -> None:
    """Draw the points: a line for each model and probe, with error bars for the spread.

    Raises:
        DataError: as in `check_picture`; or the file cannot be written.
    """
    figure = check_picture(file)
    axes = figure.subplots()
    models = list(dict.fromkeys(point.model for point in points))
    for model in models:
        for probe, style in (("linear", "-"), ("knn", "--")):
            line = [point for point in points if (point.model, point.probe) == (model, probe)]
            axes.errorbar(
                [point.images for point in line],
                [point.top1 for point in line],
                [point.spread or 0 for point in line],
                color="0.6" if "random weights" in model else f"C{models.index(model)}",
                label=f"{model}, {probe}",
                linestyle=style,
                marker="o",
                capsize=3,
            )
    ticks = sorted({point.images for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="labelled images a class", ylabel="top-1 accuracy, %", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(file) as beside:
        figure.savefig(beside, dpi=150)


def check_picture(file: Path, sources: Sequence[str | Path] = ()) -> Any:
    """Validate early that a picture can be saved as `file`, and return an empty matplotlib figure for it.

    Args:
        sources: folders of images, in which the picture must not lie.

    Raises:
        DataError: matplotlib has no format for this file name, or the folder does not exist or is one of `sources`.
        UserError: matplotlib is not installed.
    """
    with needs_extra("eval"):
        from matplotlib.figure import Figure
    check_outside(file, sources)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    if file.suffix[1:] not in figure.canvas.get_supported_filetypes() or not file.parent.is_dir():
        raise DataError(f"{file}: expected a picture's name, .png, .svg or .pdf, in a folder that exists")
    return figure
