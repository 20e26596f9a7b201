"""DIET: each image is a class of its own, and a linear layer on the average features names it.

Source: "Unsupervised Learning on a DIET" (arXiv 2302.10260; also arXiv 2406.10743). It is for a few thousand images,
as the layer has a row for each; label smoothing of 0.8 is the paper's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import EachView
from ..models.fast_cpu import Linear
from ..models.layers import draw_normal
from ..models.scott import SCOTT
from ..training.plan import Drawing, Plan, name_images
from .one_encoder import OneEncoder


class IndexStudent(nn.Module):
    """What is trained, as one module: encoder, and the head that names images."""

    def __init__(self, encoder: SCOTT, images: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Linear(encoder.embed_dim, images)
        draw_normal(self.head.weight, 0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, crops: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits of which they are, (B, images)."""
        return self.head(self.encoder.forward_features(crops).mean(dim=1))


class DIET(OneEncoder):
    """Cross-entropy of the images' numbers.

    Args:
        encoder: it needs no mask token.
        images: how many the run has.
        label_smoothing: share of a target that all images have together, 0 to below 1.
        colours: as `EachView`'s mode.
        compiled: as `EachView`.
    """

    def __init__(
        self,
        encoder: SCOTT,
        images: int,
        *,
        label_smoothing: float = 0.8,
        colours: str = "different",
        compiled: bool = False,
    ) -> None:
        super().__init__(IndexStudent(encoder, images))
        self.label_smoothing = label_smoothing
        self.drawing = Drawing(EachView(1, colours, compiled), more=name_images)

    def inputs(self, crops: Tensor, generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Crops uint8 (B, 3, H, W) -> images (B, 3, H, W), and which of the run's they are, int64 (B,)."""
        return self.drawing.inputs(crops, generator)

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Averaged over the images: a scalar."""
        return F.cross_entropy(self.student(images).float(), numbers, label_smoothing=self.label_smoothing)
