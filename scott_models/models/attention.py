"""Self-attention of timm's form, without biases and norms of its own."""

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as TimmAttention
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from torch import Tensor, nn

from . import fast_cpu


@torch.fx.wrap
@fast_cpu.shortcut(fast_cpu.attend)
def attend(
    q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Compute softmax attention with dropout p of its weights: q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask, p, is_causal)


def draw_again(*layers: nn.Linear) -> None:
    """Draw the weights of fresh layers once more.

    The released results were measured with models that drew them twice. The random numbers that come after these stay
    the same for each seed, and so do the models.
    """
    for layer in layers:
        layer.reset_parameters()


class Attention(TimmAttention):
    """Attend from all tokens to all tokens, without biases: (B, N, D) -> (B, N, D)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, proj_bias=False, attn_drop=attn_drop, proj_drop=proj_drop, **dd)
        draw_again(self.qkv, self.proj)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            x = attend(q, k, v, self.attn_drop.p if self.training else 0.0, attn_mask, is_causal)
        else:  # for those who want to see the weights
            weights = q * self.scale @ k.transpose(-2, -1)
            mask = resolve_self_attn_mask(tokens, weights, attn_mask, is_causal)
            x = self.attn_drop(maybe_add_mask(weights, mask).softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, dim)))
