"""Classifiers on frozen features that are solved for instead of trained on batches, and metrics of predictions.

`knn` and `ridge` take training features (M, D), their labels, int64 (M,) below `classes`, and test features (n, D).
They return scores (n, classes); the class with the highest score is the prediction.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10
RIDGE_STRENGTHS = torch.logspace(-1, 5, 13, dtype=torch.float64).tolist()
AT_ONCE = 2048  # queries in a batch; their similarities to all other images are in memory together
ITERATIONS = 1000  # at most, of L-BFGS, which stops sooner if the loss is flat
HISTORY = 20  # past steps that L-BFGS uses in each iteration; with 100 it needs hardly fewer iterations


@dataclass(frozen=True)
class Accuracy:
    """Describe the accuracy of predictions, in percent.

    Attributes:
        top5: share of images whose class is among the five with the highest scores; None with at most five classes.
        per_class: accuracy of each class that has test images, averaged over these classes.
    """

    top1: float
    top5: float | None
    per_class: float

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor) -> "Accuracy":
        """Compute the accuracy of scores (n, classes) for labels, int64 (n,).

        If scores are equal, the class with the lower number ranks first. A score of minus infinity is never right.
        """
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
    """Compute the confusion matrix: scores (n, classes), labels int64 (n,) -> int64 (classes, classes).

    Rows are the true classes, columns the predicted classes.
    """
    classes = scores.shape[1]
    return torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes**2).view(classes, classes)


def knn(train: Tensor, labels: Tensor, test: Tensor, classes: int, neighbours: int = NEIGHBOURS) -> Tensor:
    """Count the votes of the nearest training images by cosine; a class without a vote scores minus infinity."""
    votes = []
    for similarity in _similarities(test, train):
        nearest = similarity.topk(min(neighbours, len(train)), dim=1).indices
        votes.append(F.one_hot(labels[nearest], classes).sum(dim=1))
    counts = torch.cat(votes).double()
    return torch.where(counts > 0, counts, -torch.inf)


def ridge(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Score test images by a ridge classifier on standardised features, with one target of -1 or 1 for each class.

    The strength is the one of RIDGE_STRENGTHS with the smallest squared leave-one-out error on the training images.
    The singular values give this error without another fit, as in scikit-learn's RidgeClassifierCV.
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
        left = 1 - 1 / len(x) - u.square() @ shrink  # 1 - leverage of each image
        return ((targets - centre - u @ (shrink * projected)) / left).square().mean().item()

    strength = min(RIDGE_STRENGTHS, key=leave_one_out)
    return new @ vh.T @ ((s / (s**2 + strength))[:, None] * projected) + centre


def logistic(
    train: Tensor, labels: Tensor, classes: int, inverse_strength: float, *, rough: bool = False
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression by L-BFGS: weight (classes, D) and bias (classes,), fp64.

    The loss is the sum of cross-entropies times `inverse_strength`, plus half the squared weights, as in scikit-learn's
    LogisticRegression(C=inverse_strength).

    Args:
        rough: stop after a tenth of the iterations and compute in fp32, which is enough to compare strengths.
    """
    x = train.float() if rough else train.double()
    # Centring keeps the loss from being a narrow valley. The bias is not penalised and makes up for it at the end.
    centre = x.mean(dim=0)
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
    """Compute the mean average precision, in percent, of finding each image's class among all others by cosine.

    An image that is alone in its class is not a query, but other queries may find it.
    """
    precisions = []
    start = 0
    for similarity in _similarities(features, features):
        rows = torch.arange(len(similarity), device=labels.device)
        similarity[rows, start + rows] = -torch.inf  # the image itself comes last
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = labels[order] == labels[start + rows, None]
        found = relevant.cumsum(dim=1)
        precision = found / torch.arange(1, order.shape[1] + 1, device=labels.device)
        several = relevant.any(dim=1)
        precisions.append(((precision * relevant).sum(dim=1) / relevant.sum(dim=1))[several])
        start += len(similarity)
    return 100 * torch.cat(precisions).mean().item()


def _similarities(queries: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield the cosines of a batch of queries with all others: (B, N)."""
    others = F.normalize(others.float(), dim=1).T
    for some in F.normalize(queries.float(), dim=1).split(AT_ONCE):
        yield some @ others
