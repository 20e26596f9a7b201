"""The predictor: from features of the visible context to the target's features of every patch."""

import torch
from torch import Tensor, nn

from ..attention import Dropout
from ..layers import Block, sincos_2d
from ..on_cpu import Linear


class Predictor(nn.Module):
    """A shallow transformer over all patches: context features (B, N, D) -> predicted target features (B, N, D).

    Source: paper, Section 3.3; released code for the head (SiLU, LayerNorm, Linear) and the initialisation.

    Args:
        num_patches: patches of the square grid, or (rows, columns).
        encoder_depth: blocks of the encoder in front, which makes the initial residual branches smaller.
        pos_drop, attn_drop, proj_drop: dropout after the position, of attention weights, after attention's output.
        drop_path: stochastic depth of the last block, rising linearly from 0.

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
    ) -> None:
        super().__init__()
        if isinstance(num_patches, int):
            side = round(num_patches**0.5)
            if side * side != num_patches:
                raise ValueError(f"num_patches: expected a square number or (rows, columns), got {num_patches}")
            num_patches = (side, side)
        self.register_buffer("pos_embed", sincos_2d(num_patches, embed_dim)[None], persistent=False)
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

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.blocks(self.pos_drop(features + self.pos_embed)))
