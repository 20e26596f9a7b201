"""VISReg and related objectives: features of an image's crops agree, and features of different images are spread out.

There is no target encoder. Source: VISReg, arXiv 2606.02572; LeJEPA, arXiv 2511.08544, for the crops. With another term
in `objective.pooled` the objective is LeJEPA's (sigreg), VICReg's (vicreg) or InfoNCE between crops (infonce).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import EachView
from ..models.scott import SCOTT
from ..training.plan import Drawing, Plan
from ..training.processes import gather
from .one_encoder import OneEncoder
from .pooled import build_projector, choose_draw, infonce, regularise
from .recipe import Term


class PooledEncoder(nn.Module):
    """Encode crops and average their patch features; each process does so for its own part of a batch."""

    def __init__(self, encoder: SCOTT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *crops: Tensor) -> Tensor:
        """Compute average features (B, views, D) of crops (B, 3, H, W); crops of one size are next to each other."""
        features: list[Tensor] = []
        for size in dict.fromkeys(each.shape[-1] for each in crops):
            some = [each for each in crops if each.shape[-1] == size]
            features += self.encoder.forward_features(torch.cat(some)).mean(dim=1).chunk(len(some))
        return torch.stack(features, dim=1)


class Comparison(nn.Module):
    """Compare projected features of crops, in fp32 and between the images of all processes.

    Args:
        term: term that compares the images of a batch.
        dim: width of the features.
        projector: widths of the projector's layers.
        views: number of large crops; all crops are pulled to the mean of the large ones.
        weight: weight of the term, with 1 for the distance between crops of an image; infonce has neither.
        temperature: of infonce.
    """

    def __init__(
        self, term: Term, dim: int, projector: Sequence[int], *, views: int, weight: float, temperature: float
    ) -> None:
        super().__init__()
        self.term, self.views, self.weight, self.temperature = term, views, weight, temperature
        self.projector = build_projector(dim, projector)

    def forward(self, features: Tensor, *drawn: Tensor) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            features: average features of all crops (B, views, D), large crops first.
            drawn: directions of the term, if it needs any.
        """
        with torch.autocast(features.device.type, enabled=False):
            everyone = gather(features.float())[0].transpose(0, 1)
            projected = self.projector(everyone.flatten(0, 1)).view(*everyone.shape[:2], -1)
            if self.term == "infonce":
                pairs = [
                    infonce(one, other, self.temperature)
                    for number, one in enumerate(projected[: self.views])
                    for other in projected[number + 1 :]
                ]
                return torch.stack(pairs).mean()
            distance = (projected - projected[: self.views].mean(dim=0)).square().mean()
            spread = torch.stack([regularise(self.term, each, *drawn) for each in projected]).mean()
        return distance + self.weight * spread


class VISReg(OneEncoder):
    """Train an encoder by the distance between crops of an image, and by a term that spreads the images out.

    Args:
        encoder: created with `dynamic_img_size=True` if there are local views, which are smaller.
        comparison: computes the loss from the features of the crops.
        views_per_image: number of large crops, two or more.
        local_views: number of small crops.
        colours: mode of `EachView`.
        compiled: as in `EachView`.
    """

    def __init__(
        self,
        encoder: SCOTT,
        comparison: Comparison,
        *,
        views_per_image: int = 2,
        local_views: int = 0,
        colours: str = "different",
        compiled: bool = False,
    ) -> None:
        super().__init__(PooledEncoder(encoder))
        self.comparison: Any = comparison  # Any: with several processes a wrapper replaces it
        self.views_per_image, self.local_views = views_per_image, local_views
        more = choose_draw(comparison.term, comparison.projector[-1].out_features)
        self.drawing = Drawing(EachView(views_per_image + local_views, colours, compiled), more=more)

    def inputs(self, crops: Sequence[Tensor], generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Make the arguments of `forward` from crops uint8 (B, 3, H, W): as many images, then the term's directions."""
        return self.drawing.inputs(crops, generator)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the loss, a scalar, from the results of `inputs`."""
        count = self.views_per_image + self.local_views
        return self.comparison(self.student(*inputs[:count]), *inputs[count:])
