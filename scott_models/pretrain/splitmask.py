"""SplitMask: split an image's patches into halves, encode each half alone, and predict the other half from it.

Each half predicts the tokens of the other half, and must find the other half among those of other images.

Source: "Are Large-scale Datasets Necessary for Self-Supervised Pre-training?" (arXiv 2112.10740). The paper leaves some
points open, which this project chose (docs/objectives.md): the width of the decoder, the comparison of descriptors
without a layer in between, and the weights of both losses.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import TwoViews
from ..models.layers import Block, PlainLayerNorm, draw_normal, sincos_2d
from ..models.scott import SCOTT, find_places
from ..training.plan import Plan
from ..training.processes import gather
from . import masks
from .vocabulary import Denoising, Vocabulary


class Decoder(nn.Module):
    """Fill in the hidden patches by a shallow transformer: K encoded patches of each image -> features of all N.

    Args:
        embed_dim: D, the width of the encoder.
        grid: (rows, columns) of patches.
        num_heads: attention heads of each block.
        encoder_depth: number of blocks in the encoder; the more there are, the smaller the initial weights of the
            residual branches.
        depth: number of blocks in the decoder.
        dim: W, the width of the decoder; 0: D. If W differs from D, a linear layer comes first.
    """

    pos_embed: Tensor

    def __init__(
        self, embed_dim: int, grid: tuple[int, int], *, num_heads: int, encoder_depth: int, depth: int = 2, dim: int = 0
    ) -> None:
        super().__init__()
        self.dim = dim or embed_dim
        self.proj = nn.Identity() if self.dim == embed_dim else nn.Linear(embed_dim, self.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.dim))
        nn.init.normal_(self.mask_token, std=1e-6)
        self.register_buffer("pos_embed", sincos_2d(grid, self.dim)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(self.dim, num_heads) for _ in range(depth)))
        self.norm = PlainLayerNorm(self.dim)
        for i, block in enumerate(self.blocks, start=1):
            block.init_weights(residual_divisor=(2 * (i + encoder_depth)) ** 0.5)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Compute the positions for another grid, (rows, columns)."""
        self.pos_embed = sincos_2d(grid, self.dim, self.pos_embed.device)[None]

    def forward(self, encoded: Tensor, places: Tensor) -> Tensor:
        """Decode encoded patches (B, K, D) at the indices `places`, int64 (B, K), to features of all, (B, N, W)."""
        encoded = self.proj(encoded)
        tokens = self.mask_token.to(encoded.dtype).expand(len(encoded), self.pos_embed.shape[1], -1)
        tokens = tokens.scatter(1, places[..., None].expand_as(encoded), encoded)
        return self.norm(self.blocks(tokens + self.pos_embed))


class SplitStudent(nn.Module):
    """Join the trained parts in one module: the encoder, the decoder, and the head that predicts tokens."""

    def __init__(self, encoder: SCOTT, decoder: Decoder, words: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.head = nn.Linear(decoder.dim, words)
        draw_normal(self.head.weight, 0.02)
        nn.init.zeros_(self.head.bias)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Compute the positions for another grid, (rows, columns)."""
        self.decoder.set_grid(grid)

    def forward(
        self, images: Tensor, first: Tensor, ours: Tensor | None = None, theirs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode and decode each half alone.

        Args:
            images: (B, 3, H, W).
            first: bool (B, N), True for the patches of the first half.
            ours, theirs: indices of the patches of the first and of the second half, int64 (B, K) and (B, N - K);
                found from `first` if None.

        Returns:
            logits (B, N, V), where those of a patch come from the half without it; and the descriptors of the first and
            of the second half, (B, W) each.
        """
        ours = find_places(first) if ours is None else ours
        theirs = find_places(~first) if theirs is None else theirs
        of_first, of_second = (
            self.decoder(self.encoder.forward_visible(images, half, places), places)
            for half, places in ((first, ours), (~first, theirs))
        )
        filled = torch.where(first[..., None], of_second, of_first)
        return self.head(filled), of_first.mean(dim=1), of_second.mean(dim=1)


class SplitMask(Denoising):
    """Train an encoder by the cross-entropy of the hidden patches' tokens, and by InfoNCE between the two halves.

    Args:
        encoder: sees half of the patches at a time; needs no mask token.
        decoder: fills in the other half.
        vocabulary: makes the tokens.
        match: weight of InfoNCE, with 1 for the cross-entropy.
        temperature: of InfoNCE.
        views: function that makes context and target images: (crops uint8, draws) -> two normalised batches. The
            context images are encoded; the tokens are those of the target images.
        split: function that samples the first half: (grid, batch=..., generator=...) -> bool (batch, N).
    """

    def __init__(
        self,
        encoder: SCOTT,
        decoder: Decoder,
        vocabulary: Vocabulary,
        *,
        match: float = 1.0,
        temperature: float = 0.2,
        views: Callable[[Tensor, Draws], tuple[Tensor, Tensor]] = TwoViews(),  # noqa: B008 -- a constant
        split: Callable[..., Tensor] = partial(masks.random, ratio=0.5),  # noqa: B008 -- a constant
    ) -> None:
        super().__init__(SplitStudent(encoder, decoder, vocabulary.size), vocabulary, views, split)
        self.match, self.temperature = match, temperature

    def inputs(self, crops: Tensor, generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Make the arguments of `forward` from crops uint8 (B, 3, H, W).

        Returns:
            images (B, 3, H, W); tokens, int64 (B, N); the first half, bool (B, N); the indices of the patches of the
            first and of the second half, int64 (B, K) and (B, N - K).
        """
        images, target, *halves = self._drawing.inputs(crops, generator)
        return images, self.vocabulary(target), *halves

    def forward(self, images: Tensor, tokens: Tensor, first: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        """Compute the loss, a scalar: cross-entropy plus the weighted InfoNCE.

        The cross-entropy is averaged over all patches, each of which is hidden once. InfoNCE is averaged over both
        directions.
        """
        logits, one, other = self.student(images, first, ours, theirs)
        inpaint = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        match = info_nce(one, other, self.temperature) + info_nce(other, one, self.temperature)
        return inpaint + self.match * match / 2


def info_nce(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE from `ours` (B, D) to `theirs` (B, D), a scalar, averaged over the rows of `ours`.

    Row i of both belongs to the same image. Negatives are the rows of `theirs` of all processes.
    """
    ours, theirs = (F.normalize(x.float(), dim=1) for x in (ours, theirs))
    everyone, before = gather(theirs)
    own = torch.arange(before, before + len(ours), device=ours.device)
    with torch.autocast(ours.device.type, enabled=False):  # bf16 cannot resolve cosines near 1
        return F.cross_entropy(ours @ everyone.T / temperature, own)
