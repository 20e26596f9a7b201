"""BEiT's objective: predict the tokens of hidden patches with an encoder that sees mask tokens in their place.

Source: "BEiT: BERT Pre-Training of Image Transformers" (arXiv 2106.08254), with the targets of arXiv 2112.10740. By
default 40 % of the patches are hidden, in blocks. The loss is the cross-entropy of their tokens.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import TwoViews
from ..models.layers import PlainLayerNorm, draw_normal
from ..models.scott import SCOTT
from ..training.plan import Plan
from . import masks
from .vocabulary import Denoising, Vocabulary


class NamingStudent(nn.Module):
    """Join the trained parts in one module: the encoder, and the head that predicts tokens."""

    def __init__(self, encoder: SCOTT, words: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = PlainLayerNorm(encoder.embed_dim)
        self.head = nn.Linear(encoder.embed_dim, words)
        draw_normal(self.head.weight, 0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Predict the tokens of the hidden patches: logits (B, K, V).

        Args:
            images: (B, 3, H, W).
            visible: bool (B, N), True for visible patches.
            hidden: indices of the hidden patches, int64 (B, K).
        """
        tokens = self.encoder.forward_tokens(images, visible)
        tokens = tokens.gather(1, hidden[..., None].expand(-1, -1, tokens.shape[-1]))
        return self.head(self.norm(tokens))


class BEiT(Denoising):
    """Train an encoder by the cross-entropy of the hidden patches' tokens.

    Args:
        encoder: an encoder with a mask token.
        vocabulary: makes the tokens.
        views: function that makes context and target images: (crops uint8, draws) -> two normalised batches. The
            context images are encoded; the tokens are those of the target images.
        mask: function that samples masks: (grid, batch=..., generator=...) -> visible, bool (batch, N), with the same
            number of visible patches in each image.

    Raises:
        ValueError: the encoder has no mask token.
    """

    def __init__(
        self,
        encoder: SCOTT,
        vocabulary: Vocabulary,
        *,
        views: Callable[[Tensor, Draws], tuple[Tensor, Tensor]] = TwoViews(),  # noqa: B008 -- a constant
        mask: Callable[..., Tensor] = partial(masks.blockwise, ratio=0.4, blocks="masked"),  # noqa: B008 -- a constant
    ) -> None:
        if encoder.mask_token is None:
            raise ValueError("encoder: expected a model created with use_mask_token=True, got one without a mask token")
        super().__init__(NamingStudent(encoder, vocabulary.size), vocabulary, views, mask)

    def inputs(self, crops: Tensor, generator: torch.Generator | Draws | Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make the arguments of `forward` from crops uint8 (B, 3, H, W).

        Returns:
            images (B, 3, H, W); visible, bool (B, N); the indices of the hidden patches and their tokens, both int64
            (B, K).
        """
        images, target, visible, _, hidden = self._drawing.inputs(crops, generator)
        return images, visible, hidden, self.vocabulary(target).gather(1, hidden)

    def forward(self, images: Tensor, visible: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Compute the cross-entropy, a scalar, averaged over the hidden patches."""
        logits = self.student(images, visible, hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
