"""BEiT's form of denoising: the hidden patches' tokens, named by the encoder itself in the place of its mask token.

Source: "BEiT: BERT Pre-Training of Image Transformers" (arXiv 2106.08254) with the targets of arXiv 2112.10740: 40 % of
the patches hidden in blocks, cross-entropy of their tokens.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import TwoViews
from ..models.fast_cpu import Linear
from ..models.layers import PlainLayerNorm, draw_normal
from ..models.scott import SCOTT
from ..training.plan import Plan
from . import masks
from .vocabulary import Denoising, Vocabulary


class NamingStudent(nn.Module):
    """What is trained, as one module: encoder, and the head that names tokens."""

    def __init__(self, encoder: SCOTT, words: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = PlainLayerNorm(encoder.embed_dim)
        self.head = Linear(encoder.embed_dim, words)
        draw_normal(self.head.weight, 0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Images (B, 3, H, W), visible bool (B, N), the places of hidden patches (B, K) -> their logits (B, K, V)."""
        tokens = self.encoder.forward_tokens(images, visible)
        tokens = tokens.gather(1, hidden[..., None].expand(-1, -1, tokens.shape[-1]))
        return self.head(self.norm(tokens))


class BEiT(Denoising):
    """Cross-entropy of the hidden patches' tokens.

    Args:
        encoder: it needs a mask token.
        vocabulary: of the tokens.
        views: how crops become (context, target) images: (crops uint8, draws) -> two normalised batches. The context
            is encoded, tokens are the target's.
        mask: (grid, batch=..., generator=...) -> visible, bool (batch, N), equally many in each image.

    Raises:
        ValueError: an encoder without a mask token.
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
        """Crops uint8 (B, 3, H, W) -> images (B, 3, H, W), visible bool (B, N); hidden places and tokens (B, K)."""
        images, target, visible, _, hidden = self._drawing.inputs(crops, generator)
        return images, visible, hidden, self.vocabulary(target).gather(1, hidden)

    def forward(self, images: Tensor, visible: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Averaged over the hidden patches: a scalar."""
        logits = self.student(images, visible, hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
