"""Terms on pooled features, which keep the features of different images apart; MIM-JEPA can add one to its loss.

The moving average alone does not keep features from collapsing in the first epochs (C-JEPA, arXiv 2410.19560). A term
compares one vector of each image with those of the other images, of all processes, in fp32. A projector maps pooled
features to these vectors; exports leave it out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..training.plan import draw_nothing
from ..training.processes import gather
from .recipe import Term

TERMS: tuple[Term, ...] = get_args(Term)
SLICED = ("visreg", "sigreg")
SLICES = 256  # directions of the sliced terms, drawn anew for every update
FREQUENCIES = torch.linspace(-5, 5, 17)  # at which sigreg compares characteristic functions
COVARIANCE = 1 / 25  # weight of the covariance term, with 1 for the variance term (VICReg, arXiv 2105.04906)
TINY = 1e-4  # added to variances before the square root (VICReg)


class Pooled(nn.Module):
    """Compute one of the terms, behind its projectors and times its weight.

    Args:
        term: name of the term.
        dim: width of the features.
        projector: widths of the projector's layers; the last is the width of the vectors that the term compares.
        weight: factor of the term.
        temperature: of infonce.

    Raises:
        ValueError: an unknown term, or "none".
    """

    def __init__(
        self, term: Term, dim: int, projector: Sequence[int], *, weight: float = 1.0, temperature: float = 0.2
    ) -> None:
        super().__init__()
        if term not in TERMS[1:]:
            raise ValueError(f"pooled: expected one of {TERMS[1:]}, got {term!r}")
        self.term, self.weight, self.temperature = term, weight, temperature
        self.width = projector[-1]
        self.context = build_projector(dim, projector)
        self.target = build_projector(dim, projector) if term == "infonce" else None

    @property
    def drawing(self) -> Callable[[Draws], tuple[np.ndarray, ...]]:
        """Return the function that draws an update's random directions, or nothing; it can be pickled."""
        return choose_draw(self.term, self.width)

    def forward(self, context: Tensor, target: Tensor, *drawn: Tensor) -> Tensor:
        """Compute the weighted term, a scalar.

        Args:
            context: pooled context features (B, D).
            target: pooled target features (B, D); only infonce uses them.
            drawn: result of `drawing`.
        """
        with torch.autocast(context.device.type, enabled=False):
            ours = self.context(gather(context.float())[0])
            if self.target is not None:
                term = infonce(ours, self.target(gather(target.float())[0]), self.temperature)
            else:
                term = regularise(self.term, ours, *drawn)
        return self.weight * term


def build_projector(dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Build linear layers from `dim` through `widths`, with batch norm and ReLU between them.

    Batch norm always uses the statistics of the current batch, so a checkpoint needs to hold weights only.
    """
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width, track_running_stats=False), nn.ReLU()]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, widths[-1]))


def choose_draw(term: Term, width: int) -> Callable[[Draws], tuple[np.ndarray, ...]]:
    """Return the function that draws random numbers for a term: directions for the sliced terms, otherwise nothing."""
    return partial(draw_directions, width=width, count=SLICES) if term in SLICED else draw_nothing


def draw_directions(draws: Draws, width: int, count: int) -> tuple[np.ndarray]:
    """Draw directions that all images of an update share, fp32 (width, count), with columns of length 1."""
    normal = torch.special.ndtri(draws.shared.uniform(width * count).clamp(min=2**-53)).view(width, count)
    return (F.normalize(normal, dim=0).float().numpy(),)


def regularise(term: Term, features: Tensor, *drawn: Tensor) -> Tensor:
    """Compute visreg, sigreg or vicreg, a scalar: how far features (n, W) of n images are from being spread out.

    Args:
        drawn: directions (W, S) of the sliced terms.
    """
    if term in SLICED:
        return (visreg if term == "visreg" else sigreg)(features, *drawn)
    return vicreg(features)


def visreg(features: Tensor, directions: Tensor) -> Tensor:
    """Measure how far features (n, W) are from a standard normal distribution, in centre, scale and shape: a scalar.

    The loss is the sum of three parts:
    - centre: the squared mean;
    - scale: the squared distance of each standard deviation from 1;
    - shape: for features scaled to a deviation of 1, the squared distance of their projections on `directions` (W, S)
      from the quantiles of a normal distribution (sliced Wasserstein distance).

    Source: VISReg, arXiv 2606.02572.
    """
    centre = features.mean(dim=0)
    deviation = (features.var(dim=0, correction=0) + TINY).sqrt()
    projected = ((features - centre) / deviation.detach()) @ directions
    shape = (projected.sort(dim=0).values - compute_normal_quantiles(len(features), features.device)[:, None]).square()
    return centre.square().mean() + (1 - deviation).square().mean() + shape.mean()


def compute_normal_quantiles(count: int, device: torch.device) -> Tensor:
    """Compute the quantiles of a standard normal distribution for `count` sorted samples: (count,)."""
    return torch.special.ndtri((torch.arange(count, device=device) + 0.5) / count)


def sigreg(features: Tensor, directions: Tensor) -> Tensor:
    """Compute Epps and Pulley's statistic, a scalar: a test of features (n, W) for a standard normal distribution.

    The statistic is n times the squared distance of the two characteristic functions, integrated over frequencies with
    a normal window. It is averaged over `directions` (W, S). Source: LeJEPA, arXiv 2511.08544, Section 4.2.
    """
    frequencies = FREQUENCIES.to(features.device)
    normal = torch.exp(-frequencies.square() / 2)  # characteristic function of the normal distribution, and the window
    angles = (features @ directions)[..., None] * frequencies
    distance = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return len(features) * torch.trapezoid(distance * normal, frequencies).mean()


def vicreg(features: Tensor) -> Tensor:
    """Compute VICReg's variance and covariance terms of features (n, W), a scalar.

    They penalise standard deviations below 1 and covariances between features.
    """
    centred = features - features.mean(dim=0)
    covariance = centred.T @ centred / (len(features) - 1)
    deviation = (covariance.diagonal() + TINY).sqrt()
    others = covariance.square().sum() - covariance.diagonal().square().sum()
    return F.relu(1 - deviation).mean() + COVARIANCE * others / features.shape[1]


def infonce(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE between the rows of `ours` and of `theirs`, (n, W) each: a scalar, averaged over both directions.

    Row i of `ours` and row i of `theirs` belong to the same image.
    """
    logits = F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T / temperature
    own = torch.arange(len(ours), device=ours.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
