"""VISReg and its kin: crops of an image agree, and the images of a batch are spread out. There is no target encoder.

Source: VISReg, arXiv 2606.02572; LeJEPA, arXiv 2511.08544, for the crops; `objective.pooled` chooses another term than
VISReg's, with which this is LeJEPA (sigreg), VICReg (vicreg) or InfoNCE between crops (infonce).
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
    """What is trained in each process's own part of a batch: the encoder, whose features are averaged."""

    def __init__(self, encoder: SCOTT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *crops: Tensor) -> Tensor:
        """Crops (B, 3, H, W), those of one size next to each other -> average features of each (B, views, D)."""
        features: list[Tensor] = []
        for size in dict.fromkeys(each.shape[-1] for each in crops):
            some = [each for each in crops if each.shape[-1] == size]
            features += self.encoder.forward_features(torch.cat(some)).mean(dim=1).chunk(len(some))
        return torch.stack(features, dim=1)


class Comparison(nn.Module):
    """Compare what a projector makes of crops' features, in fp32 and between the images of all processes.

    Args:
        term: on the images of a batch.
        dim: of the features.
        projector: widths of its layers.
        views: how many crops are large; what these are on average all are drawn to.
        weight: of the term beside the distance of crops of an image.
        temperature: of infonce.
    """

    def __init__(
        self, term: Term, dim: int, projector: Sequence[int], *, views: int, weight: float, temperature: float
    ) -> None:
        super().__init__()
        self.term, self.views, self.weight, self.temperature = term, views, weight, temperature
        self.projector = build_projector(dim, projector)

    def forward(self, features: Tensor, *drawn: Tensor) -> Tensor:
        """Features (B, views, D), and what was drawn for the term -> the loss, a scalar."""
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
    """Distance between crops of an image, and a term that spreads the images out.

    Args:
        encoder: with `dynamic_img_size` if there are local views, which are smaller.
        comparison: of the crops' features.
        views_per_image: large crops, two or more.
        local_views: small crops.
        colours: as `EachView`'s mode.
        compiled: as `EachView`.
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
        self.comparison: Any = comparison  # several processes wrap it
        self.views_per_image, self.local_views = views_per_image, local_views
        more = choose_draw(comparison.term, comparison.projector[-1].out_features)
        self.drawing = Drawing(EachView(views_per_image + local_views, colours, compiled), more=more)

    def inputs(self, crops: Sequence[Tensor], generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Crops uint8 (B, 3, H, W), several of each image -> as many images (B, 3, H, W), and the term's directions."""
        return self.drawing.inputs(crops, generator)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Images of all views, then what the term draws -> a scalar."""
        count = self.views_per_image + self.local_views
        return self.comparison(self.student(*inputs[:count]), *inputs[count:])
