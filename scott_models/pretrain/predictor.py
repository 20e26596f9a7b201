"""The predictor of MIM-JEPA: context features -> predicted target features of every patch."""

import torch
from torch import Tensor, nn

from ..models.layers import Block, sincos_2d


class Predictor(nn.Module):
    """Predict target features (B, N, D) from context features (B, N, D) by a shallow transformer over all patches.

    Source: paper, Section 3.3; released code for the head (SiLU, LayerNorm, Linear) and the initialisation.

    Args:
        embed_dim: D, the width of the features.
        num_patches: number of patches of a square grid, or (rows, columns).
        num_heads: attention heads of each block.
        encoder_depth: number of blocks in the encoder; the more there are, the smaller the initial weights of the
            residual branches.
        depth: number of blocks in the predictor.
        pos_drop: dropout rate after the positions are added.
        attn_drop: dropout rate of the attention weights.
        proj_drop: dropout rate after the attention's output projection.
        drop_path: stochastic depth rate of the last block; it rises linearly from 0 in the first block.
        mask_token: True if the features are those of the visible patches only; a learned mask token then stands for
            each hidden patch.

    Raises:
        ValueError: `num_patches` is an integer but not a square number.
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
        self.pos_drop = nn.Dropout(pos_drop)
        self.blocks = nn.Sequential(
            *(
                Block(embed_dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop, drop_path=rate)
                for rate in torch.linspace(0, drop_path, depth).tolist()
            )
        )
        self.head = nn.Sequential(nn.SiLU(), nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim))
        for i, block in enumerate(self.blocks, start=1):
            # The released code scales twice: by the depth in the predictor, and by the depth in the whole network.
            block.init_weights(residual_divisor=(2 * i) ** 0.5 * (2 * (i + encoder_depth)) ** 0.5)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Compute the positions for another grid, (rows, columns)."""
        self.pos_embed = sincos_2d(grid, self.pos_embed.shape[-1], self.pos_embed.device)[None]

    def forward(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the target features of all patches, (B, N, D).

        Args:
            features: context features of all patches, (B, N, D), or of the K visible patches, (B, K, D); the latter
                needs a predictor with a mask token, and `places`.
            places: indices of the visible patches, int64 (B, K).
        """
        if places is not None:
            assert self.mask_token is not None
            tokens = self.mask_token.to(features.dtype).expand(len(features), self.pos_embed.shape[1], -1)
            features = tokens.scatter(1, places[..., None].expand_as(features), features)
        return self.head(self.blocks(self.pos_drop(features + self.pos_embed)))
