"""The predictor: from features of the visible context to the target's features of every patch."""

import torch
from torch import Tensor, nn

from ..models.attention import Dropout
from ..models.fast_cpu import Linear
from ..models.layers import Block, sincos_2d


class Predictor(nn.Module):
    """A shallow transformer over all patches: context features (B, N, D) -> predicted target features (B, N, D).

    Source: paper, Section 3.3; released code for the head (SiLU, LayerNorm, Linear) and the initialisation.

    Args:
        num_patches: patches of the square grid, or (rows, columns).
        encoder_depth: blocks of the encoder in front, which makes the initial residual branches smaller.
        pos_drop, attn_drop, proj_drop: dropout after the position, of attention weights, after attention's output.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        mask_token: whether features come of the visible patches alone, and a learned token stands for the others.

    Raises:
        ValueError: a `num_patches` that is no square number.
    """

    pos_embed: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_patches: int | tuple[int, int],
        *,
        num_heads: int,
        encoder_depth: int,
        depth: int = 3,
        pos_drop: float = 0.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(num_patches, int):
            side = round(num_patches**0.5)
            if side * side != num_patches:
                raise ValueError(f"num_patches: expected a square number or (rows, columns), got {num_patches}")
            num_patches = (side, side)
        self.register_buffer("pos_embed", sincos_2d(num_patches, embed_dim)[None], persistent=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if mask_token else None
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=1e-6)
        self.pos_drop = Dropout(pos_drop)
        self.blocks = nn.Sequential(
            *(
                Block(embed_dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop, drop_path=rate)
                for rate in torch.linspace(0, drop_path, depth).tolist()
            )
        )
        self.head = nn.Sequential(nn.SiLU(), nn.LayerNorm(embed_dim), Linear(embed_dim, embed_dim))
        for i, block in enumerate(self.blocks, start=1):
            # The released code divides twice: by the depth here, and again by the depth in the whole network.
            block.init_weights(residual_divisor=(2 * i) ** 0.5 * (2 * (i + encoder_depth)) ** 0.5)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Have positions for another grid, (rows, columns), from now on."""
        self.pos_embed = sincos_2d(grid, self.pos_embed.shape[-1], self.pos_embed.device)[None]

    def forward(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Context features -> predictions of all patches (B, N, D).

        Args:
            features: of all patches (B, N, D); or of K visible ones (B, K, D), of a predictor with a mask token.
            places: of these, int64 (B, K).
        """
        if places is not None:
            assert self.mask_token is not None
            tokens = self.mask_token.to(features.dtype).expand(len(features), self.pos_embed.shape[1], -1)
            features = tokens.scatter(1, places[..., None].expand_as(features), features)
        return self.head(self.blocks(self.pos_drop(features + self.pos_embed)))
