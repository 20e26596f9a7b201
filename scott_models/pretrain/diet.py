"""DIET: each image is a class of its own, which a linear layer on the average features predicts.

Source: "Unsupervised Learning on a DIET" (arXiv 2302.10260; also arXiv 2406.10743). DIET suits a few thousand images,
because the layer has a row for each image. The label smoothing of 0.8 is the paper's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import EachView
from ..models.layers import draw_normal
from ..models.scott import SCOTT
from ..training.plan import Drawing, Plan, name_images
from .one_encoder import OneEncoder


class IndexStudent(nn.Module):
    """Join the trained parts in one module: the encoder, and the head that predicts the image's index."""

    def __init__(self, encoder: SCOTT, images: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embed_dim, images)
        draw_normal(self.head.weight, 0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, crops: Tensor) -> Tensor:
        """Predict which image of the run each crop (B, 3, H, W) is of: logits (B, images)."""
        return self.head(self.encoder.forward_features(crops).mean(dim=1))


class DIET(OneEncoder):
    """Train an encoder by the cross-entropy of the images' indices.

    Args:
        encoder: needs no mask token.
        images: number of images of the run.
        label_smoothing: share of the target that is spread evenly over all images, 0 to below 1.
        colours: mode of `EachView`.
        compiled: as in `EachView`.
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
        """Make the arguments of `forward` from crops uint8 (B, 3, H, W).

        Returns:
            images (B, 3, H, W), and their indices in the run, int64 (B,).

        Raises:
            ValueError: `generator` does not know the indices.
        """
        return self.drawing.inputs(crops, generator)

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Compute the cross-entropy, a scalar, averaged over the images."""
        return F.cross_entropy(self.student(images).float(), numbers, label_smoothing=self.label_smoothing)
