"""Classifiers of frozen features, without training by gradient steps, and what their predictions are worth.

Each takes training features (M, D), their labels, int64 (M,) below `classes`, and test features (n, D), and returns
scores (n, classes), the more the likelier.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10
RIDGE_STRENGTHS = torch.logspace(-1, 5, 13, dtype=torch.float64).tolist()
AT_ONCE = 2048  # test images whose similarities to all others are in memory
ITERATIONS = 1000  # of L-BFGS, which stops sooner where the loss is flat
HISTORY = 20  # of its last steps, which it goes through at every one; with 100 it needs hardly fewer


@dataclass(frozen=True)
class Accuracy:
    """Of predictions, in percent.

    Attributes:
        top5: how often the class is among the five likeliest; None where there are not more than five.
        per_class: mean over the classes that have test images of the share of theirs that are right.
    """

    top1: float
    top5: float | None
    per_class: float

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor) -> "Accuracy":
        """Of scores (n, classes) for labels, int64 (n,). Of equal scores the first class's counts as higher."""
        classes = scores.shape[1]
        own = scores.gather(1, labels[:, None])
        before = torch.arange(classes, device=labels.device) < labels[:, None]
        rank = ((scores > own) | ((scores == own) & before)).sum(dim=1)
        found = own[:, 0] > -torch.inf
        right = (rank == 0) & found
        counts = torch.bincount(labels, minlength=classes)
        shares = torch.bincount(labels, right.double(), minlength=classes)[counts > 0] / counts[counts > 0]
        top5 = 100 * ((rank < 5) & found).double().mean().item() if classes > 5 else None
        return cls(100 * right.double().mean().item(), top5, 100 * shares.mean().item())


def count_confusions(scores: Tensor, labels: Tensor) -> Tensor:
    """How often each class is taken for which: scores (n, classes), labels int64 (n,) -> int64 (classes, classes).

    Rows are the true classes, columns the likeliest ones.
    """
    classes = scores.shape[1]
    return torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes**2).view(classes, classes)


def knn(train: Tensor, labels: Tensor, test: Tensor, classes: int, neighbours: int = NEIGHBOURS) -> Tensor:
    """Votes of the nearest training images by cosine; a class without a vote scores minus infinity."""
    votes = []
    for similarity in _similarities(test, train):
        nearest = similarity.topk(min(neighbours, len(train)), dim=1).indices
        votes.append(F.one_hot(labels[nearest], classes).sum(dim=1))
    counts = torch.cat(votes).double()
    return torch.where(counts > 0, counts, -torch.inf)


def ridge(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Ridge classifier on standardised features, one -1/1 target a class.

    Of RIDGE_STRENGTHS the one with the least squared leave-one-out error on the training images counts; the singular
    values give it without fitting again, as scikit-learn's RidgeClassifierCV does.
    """
    x, new = train.double(), test.double()
    mean, spread = x.mean(dim=0), x.std(dim=0, correction=0)
    spread[spread == 0] = 1
    x, new = (x - mean) / spread, (new - mean) / spread
    targets = 2.0 * F.one_hot(labels, classes).double() - 1
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    centre = targets.mean(dim=0)
    projected = u.T @ (targets - centre)

    def leave_one_out(strength: float) -> float:
        shrink = (s**2 / (s**2 + strength))[:, None]
        left = 1 - 1 / len(x) - u.square() @ shrink  # how little of a prediction an image's own target makes
        return ((targets - centre - u @ (shrink * projected)) / left).square().mean().item()

    strength = min(RIDGE_STRENGTHS, key=leave_one_out)
    return new @ vh.T @ ((s / (s**2 + strength))[:, None] * projected) + centre


def logistic(
    train: Tensor, labels: Tensor, classes: int, inverse_strength: float, *, rough: bool = False
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS: weight (classes, D) and bias (classes,), fp64.

    Least sum of cross-entropies times `inverse_strength`, plus half the squared weights: scikit-learn's
    LogisticRegression(C=inverse_strength).

    Args:
        rough: stop after a tenth of the iterations, in fp32: enough to compare strengths.
    """
    x = train.float() if rough else train.double()
    centre = x.mean(dim=0)  # the bias, which is free, takes it back; without it the loss is a narrow valley
    x = x - centre
    scale = 1 / (inverse_strength * len(x))
    weight, bias = (torch.zeros(shape, dtype=x.dtype, device=x.device) for shape in ((classes, x.shape[1]), (classes,)))
    solver = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=ITERATIONS // 10 if rough else ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + scale / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    weight, bias = weight.detach().double(), bias.detach().double()
    return weight, bias - weight @ centre.double()


def score_retrieval(features: Tensor, labels: Tensor) -> float:
    """Mean average precision, in percent, of finding each image's class among all other images by cosine.

    Images whose class has no other are not asked for, but may be found.
    """
    precisions = []
    start = 0
    for similarity in _similarities(features, features):
        rows = torch.arange(len(similarity), device=labels.device)
        similarity[rows, start + rows] = -torch.inf  # itself, which comes last
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = labels[order] == labels[start + rows, None]
        found = relevant.cumsum(dim=1)
        precision = found / torch.arange(1, order.shape[1] + 1, device=labels.device)
        several = relevant.any(dim=1)
        precisions.append(((precision * relevant).sum(dim=1) / relevant.sum(dim=1))[several])
        start += len(similarity)
    return 100 * torch.cat(precisions).mean().item()


def _similarities(queries: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Cosines of some queries at a time with all others: (some, N)."""
    others = F.normalize(others.float(), dim=1).T
    for some in F.normalize(queries.float(), dim=1).split(AT_ONCE):
        yield some @ others
