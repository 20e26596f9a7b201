"""SplitMask: each half of an image's patches, encoded alone, names the other half's and finds it among other images.

Source: "Are Large-scale Datasets Necessary for Self-Supervised Pre-training?" (arXiv 2112.10740). What it
leaves open is this project's choice (docs/objectives.md): the decoder's width, that descriptors are compared without a
layer in between, and how both losses weigh.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import TwoViews
from ..models.fast_cpu import Linear
from ..models.layers import Block, PlainLayerNorm, draw_normal, sincos_2d
from ..models.scott import SCOTT, find_places
from ..training.plan import Plan
from ..training.processes import gather
from . import masks
from .vocabulary import Denoising, Vocabulary


class Decoder(nn.Module):
    """A shallow transformer that fills in: encoded patches (B, K, D), their places, int64 (B, K) -> all (B, N, W).

    Args:
        embed_dim: D, of the encoder.
        grid: rows and columns of patches.
        encoder_depth: blocks of the encoder in front, which makes the initial residual branches smaller.
        dim: W, the decoder's own width; D if 0. Of another width, a linear layer comes first.
    """

    pos_embed: Tensor

    def __init__(
        self, embed_dim: int, grid: tuple[int, int], *, num_heads: int, encoder_depth: int, depth: int = 2, dim: int = 0
    ) -> None:
        super().__init__()
        self.dim = dim or embed_dim
        self.proj = nn.Identity() if self.dim == embed_dim else Linear(embed_dim, self.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.dim))
        nn.init.normal_(self.mask_token, std=1e-6)
        self.register_buffer("pos_embed", sincos_2d(grid, self.dim)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(self.dim, num_heads) for _ in range(depth)))
        self.norm = PlainLayerNorm(self.dim)
        for i, block in enumerate(self.blocks, start=1):
            block.init_weights(residual_divisor=(2 * (i + encoder_depth)) ** 0.5)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Have positions for another grid, (rows, columns), from now on."""
        self.pos_embed = sincos_2d(grid, self.dim, self.pos_embed.device)[None]

    def forward(self, encoded: Tensor, places: Tensor) -> Tensor:
        encoded = self.proj(encoded)
        tokens = self.mask_token.to(encoded.dtype).expand(len(encoded), self.pos_embed.shape[1], -1)
        tokens = tokens.scatter(1, places[..., None].expand_as(encoded), encoded)
        return self.norm(self.blocks(tokens + self.pos_embed))


class SplitStudent(nn.Module):
    """What is trained, as one module: encoder, decoder, and the head that names tokens."""

    def __init__(self, encoder: SCOTT, decoder: Decoder, words: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.head = Linear(decoder.dim, words)
        draw_normal(self.head.weight, 0.02)
        nn.init.zeros_(self.head.bias)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Have positions for another grid, (rows, columns), from now on."""
        self.decoder.set_grid(grid)

    def forward(
        self, images: Tensor, first: Tensor, ours: Tensor | None = None, theirs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W), their first half bool (B, N) -> logits (B, N, V), descriptors of both halves (B, W).

        A patch's logits come from the half that it is not in.

        Args:
            ours, theirs: places of the first half and of the second, as `SCOTT.forward_visible` takes them.
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
    """Split, inpaint, match: cross-entropy of the hidden patches' tokens, and InfoNCE between the two halves.

    Args:
        encoder: it sees half of the patches at a time, and needs no mask token.
        vocabulary: of the tokens.
        match: weight of InfoNCE beside the cross-entropy.
        temperature: of InfoNCE.
        views: how crops become (context, target) images: (crops uint8, draws) -> two normalised batches. The context
            is encoded, tokens are the target's.
        split: (grid, batch=..., generator=...) -> the first half, bool (batch, N).
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
        """Crops uint8 (B, 3, H, W) -> images (B, 3, H, W), tokens int64 (B, N), the first half bool (B, N).

        And the places of both halves, int64 (B, K) and (B, N - K).
        """
        images, target, *halves = self._drawing.inputs(crops, generator)
        return images, self.vocabulary(target), *halves

    def forward(self, images: Tensor, tokens: Tensor, first: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        """Cross-entropy over all patches, each hidden once, plus the weighted mean of both directions' InfoNCE."""
        logits, one, other = self.student(images, first, ours, theirs)
        inpaint = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        match = info_nce(one, other, self.temperature) + info_nce(other, one, self.temperature)
        return inpaint + self.match * match / 2


def info_nce(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """How well each of `ours` (B, D) is told from its own among `theirs` (B, D) of all processes: a scalar."""
    ours, theirs = (F.normalize(x.float(), dim=1) for x in (ours, theirs))
    everyone, before = gather(theirs)
    own = torch.arange(before, before + len(ours), device=ours.device)
    with torch.autocast(ours.device.type, enabled=False):  # cosines near 1 differ by less than bf16 tells
        return F.cross_entropy(ours @ everyone.T / temperature, own)
