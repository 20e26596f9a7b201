"""A term on pooled features beside MIM-JEPA's loss: it keeps images apart from the first update on.

The moving average alone does not keep features from collapsing in the first epochs (C-JEPA, arXiv 2410.19560). A term
looks at one vector an image, behind a projector that exports leave out, in fp32, and at the images of all processes.
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
SLICES = 256  # directions of those, anew in every update
FREQUENCIES = torch.linspace(-5, 5, 17)  # where sigreg compares characteristic functions
COVARIANCE = 1 / 25  # weight beside the variance's (VICReg, arXiv 2105.04906)
TINY = 1e-4  # added to variances before their root is taken (the same)


class Pooled(nn.Module):
    """One of the terms, with its projectors and its weight.

    Args:
        dim: of the features.
        projector: widths of its layers, the last one of what the term compares.
        weight: what the term is multiplied with.
        temperature: of infonce.

    Raises:
        ValueError: an unknown term.
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
        """Return what draws for an update, directions or nothing; can be pickled."""
        return choose_draw(self.term, self.width)

    def forward(self, context: Tensor, target: Tensor, *drawn: Tensor) -> Tensor:
        """Pooled features of context and target, (B, D) each, and what was drawn -> the weighted term, a scalar."""
        with torch.autocast(context.device.type, enabled=False):
            ours = self.context(gather(context.float())[0])
            if self.target is not None:
                term = infonce(ours, self.target(gather(target.float())[0]), self.temperature)
            else:
                term = regularise(self.term, ours, *drawn)
        return self.weight * term


def build_projector(dim: int, widths: Sequence[int]) -> nn.Sequential:
    """Build linear layers from `dim` through `widths`, with batch norm and ReLU between.

    The norm always uses the batch at hand, so that weights are all there is to keep.
    """
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width, track_running_stats=False), nn.ReLU()]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, widths[-1]))


def choose_draw(term: Term, width: int) -> Callable[[Draws], tuple[np.ndarray, ...]]:
    """Return what draws for a term: of those that look along directions these, the same for all images of an update."""
    return partial(draw_directions, width=width, count=SLICES) if term in SLICED else draw_nothing


def draw_directions(draws: Draws, width: int, count: int) -> tuple[np.ndarray]:
    """Draw directions that all images of an update share, columns of length 1: fp32 (width, count)."""
    normal = torch.special.ndtri(draws.shared.uniform(width * count).clamp(min=2**-53)).view(width, count)
    return (F.normalize(normal, dim=0).float().numpy(),)


def regularise(term: Term, features: Tensor, *drawn: Tensor) -> Tensor:
    """Measure by a term how far features (n, W) of n images are from being spread out: a scalar."""
    if term in SLICED:
        return (visreg if term == "visreg" else sigreg)(features, *drawn)
    return vicreg(features)


def visreg(features: Tensor, directions: Tensor) -> Tensor:
    """Measure how far features (n, W) are from a standard normal distribution: centre, scale and shape.

    The mean's square; how far each standard deviation is from 1, squared; and, of features that are scaled to a
    deviation of 1, the squared distance of their projections on `directions` (W, S) from a normal distribution's
    quantiles (sliced Wasserstein distance). Source: VISReg, arXiv 2606.02572.
    """
    centre = features.mean(dim=0)
    deviation = (features.var(dim=0, correction=0) + TINY).sqrt()
    projected = ((features - centre) / deviation.detach()) @ directions
    shape = (projected.sort(dim=0).values - compute_normal_quantiles(len(features), features.device)[:, None]).square()
    return centre.square().mean() + (1 - deviation).square().mean() + shape.mean()


def compute_normal_quantiles(count: int, device: torch.device) -> Tensor:
    """List what `count` sorted samples of a standard normal distribution should be: (count,)."""
    return torch.special.ndtri((torch.arange(count, device=device) + 0.5) / count)


def sigreg(features: Tensor, directions: Tensor) -> Tensor:
    """Test features (n, W) along `directions` (W, S) for a standard normal distribution: Epps and Pulley's statistic.

    It is n times the squared distance of the two characteristic functions, integrated over frequencies under a normal
    window, mean over directions. Source: LeJEPA, arXiv 2511.08544, Section 4.2.
    """
    frequencies = FREQUENCIES.to(features.device)
    normal = torch.exp(-frequencies.square() / 2)  # its characteristic function, and the window
    angles = (features @ directions)[..., None] * frequencies
    distance = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return len(features) * torch.trapezoid(distance * normal, frequencies).mean()


def vicreg(features: Tensor) -> Tensor:
    """Penalise deviations below 1, and correlations, of features (n, W): VICReg's variance and covariance terms."""
    centred = features - features.mean(dim=0)
    covariance = centred.T @ centred / (len(features) - 1)
    deviation = (covariance.diagonal() + TINY).sqrt()
    others = covariance.square().sum() - covariance.diagonal().square().sum()
    return F.relu(1 - deviation).mean() + COVARIANCE * others / features.shape[1]


def infonce(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Measure how well each image of `ours` (n, W) is told from the others among `theirs` (n, W), and the reverse."""
    logits = F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T / temperature
    own = torch.arange(len(ours), device=ours.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
