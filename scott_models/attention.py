"""Self-attention and dropout as timm and torch define them, by the shortest way on a CPU."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as TimmAttention
from torch import Tensor, nn

from .on_cpu import MULTIPLIES_BFLOAT16, Linear, piecewise

# A CPU's fused kernel cannot drop weights, and in bfloat16 it takes twice the time of plain products where the
# processor multiplies bfloat16 itself. It holds no weights, though, which beyond some size decides.
LARGEST_WRITTEN_OUT = 2**25  # attention weights of one image, all heads: 64 MiB in bfloat16
PIECE = 2**20  # attention weights of a piece of a batch


@torch.library.custom_op("scott_models::kept", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def kept(like: Tensor, shape: list[int], dropped: int) -> Tensor:
    """What dropout multiplies with: bfloat16 of a shape, 0 with probability dropped / 65536 and 1 otherwise.

    Each random word of 64 bits, of torch's generator for `like`'s device, makes four decisions, where `bernoulli_`
    takes one each. An operator of its own, since a compiler would draw a word for each.
    """
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    kept = words.view(torch.int16)[:count].view(shape).ge_(dropped - 2**15)
    return kept.mul_(0x3F80).view(torch.bfloat16)  # the bits of 1.0


@kept.register_fake
def _(like: Tensor, shape: list[int], dropped: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=like.device)


def dropout(x: Tensor, p: float) -> Tensor:
    """F.dropout in training; on a CPU with p rounded to 1/65536, and cheaper random numbers."""
    dropped = round(p * 2**16)
    if x.device.type != "cpu" or dropped in (0, 2**16):
        return F.dropout(x, p)
    return x * kept(x.detach(), x.shape, dropped).to(x.dtype) * (2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """nn.Dropout by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def attend(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0) -> Tensor:
    """Softmax attention with dropout p of its weights: q, k, v (B, heads, N, d) -> (B, heads, N, d)."""
    weights = q.shape[1] * q.shape[2] * k.shape[2]
    gains = p > 0 or (q.dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16)
    if q.device.type != "cpu" or weights > LARGEST_WRITTEN_OUT or not gains:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)
    heads = (x.flatten(0, 1) for x in (q, k, v))
    size = PIECE // (q.shape[2] * k.shape[2])
    return piecewise(partial(_written_out, p=p), size, *heads).unflatten(0, q.shape[:2])


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
        if attn_mask is not None or is_causal or not self.fused_attn:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = attend(q, k, v, self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, dim)))
