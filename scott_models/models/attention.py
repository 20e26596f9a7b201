"""Self-attention and dropout as timm and torch define them, by the shortest way on a CPU."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as TimmAttention
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from torch import Tensor, nn

from .fast_cpu import MULTIPLIES_BFLOAT16, Linear, is_exporting, piecewise

# A CPU's fused kernel cannot drop weights, and in bfloat16 it takes twice the time of plain products where the
# processor multiplies bfloat16 itself. It holds no weights, though, which beyond some size decides.
LARGEST_WRITTEN_OUT = 2**25  # attention weights of one image, all heads: 64 MiB in bfloat16
PIECE = 2**20  # attention weights of a piece of a batch


# torch.library.custom_op would be shorter, but takes no tags before torch 2.8.
torch.library.define(
    "scott_models::kept",
    "(Tensor like, SymInt[] shape, SymInt dropped) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
)
kept = torch.ops.scott_models.kept


@torch.library.impl("scott_models::kept", "default")
def _kept(like: Tensor, shape: list[int], dropped: int) -> Tensor:
    """Draw what dropout multiplies with: bfloat16 of a shape, 0 with probability dropped / 65536 and 1 otherwise.

    Each random word of 64 bits, of torch's generator for `like`'s device, makes four decisions, where `bernoulli_`
    takes one each. An operator of its own, since a compiler would draw a word for each.
    """
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    kept = words.view(torch.int16)[:count].view(shape).ge_(dropped - 2**15)
    return kept.mul_(0x3F80).view(torch.bfloat16)  # the bits of 1.0


@torch.library.register_fake("scott_models::kept")
def _(like: Tensor, shape: list[int], dropped: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=like.device)


@torch.fx.wrap
def dropout(x: Tensor, p: float) -> Tensor:
    """F.dropout in training; on a CPU with p rounded to 1/65536, and cheaper random numbers."""
    dropped = int(p * 2**16 + 0.5)
    if not torch.jit.is_scripting() and 0 < dropped < 2**16 and _draws_itself(x):
        return x * kept(x.detach(), x.shape, dropped).to(x.dtype) * (2**16 / (2**16 - dropped))
    return F.dropout(x, p)


@torch.jit.unused
def _draws_itself(x: Tensor) -> bool:
    return x.device.type == "cpu" and not is_exporting()


class Dropout(nn.Dropout):
    """nn.Dropout by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


@torch.fx.wrap
def attend(
    q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Softmax attention with dropout p of its weights: q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
    if not torch.jit.is_scripting() and attn_mask is None and not is_causal and _gains(q, k, p):
        heads = (x.flatten(0, 1) for x in (q, k, v))
        size = PIECE // (q.shape[2] * k.shape[2])
        return piecewise(partial(_written_out, p=p), size, *heads).unflatten(0, q.shape[:2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask, p, is_causal)


@torch.jit.unused
def _gains(q: Tensor, k: Tensor, p: float) -> bool:
    """Tell whether writing attention out is faster than the fused kernel."""
    weights = q.shape[1] * q.shape[2] * k.shape[2]
    slow = p > 0 or (q.dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16)
    return q.device.type == "cpu" and slow and weights <= LARGEST_WRITTEN_OUT and not is_exporting()


def _written_out(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    return dropout(weights, p) @ v


class Attention(TimmAttention):
    """timm's self-attention without biases and norms of its own, by `attend`: (B, N, D) -> (B, N, D)."""

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
        super().__init__(dim, num_heads, proj_bias=False, attn_drop=attn_drop, device=device, dtype=dtype)
        self.qkv = Linear(dim, 3 * dim, bias=False, device=device, dtype=dtype)
        self.proj = Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.proj_drop = Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            x = attend(q, k, v, self.attn_drop.p if self.training else 0.0, attn_mask, is_causal)
        else:  # for whoever wants to see the weights
            weights = q * self.scale @ k.transpose(-2, -1)
            mask = resolve_self_attn_mask(tokens, weights, attn_mask, is_causal)
            x = self.attn_drop(maybe_add_mask(weights, mask).softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, dim)))
