"""The transformer block and the positions that SCOTT and its predictor share."""

from functools import partial

import torch
from einops import rearrange
from timm.layers.drop import DropPath
from timm.layers.mlp import GluMlp
from torch import Tensor, nn

from . import fast_cpu
from .attention import Attention, draw_again

# All norms of the transformer are without parameters, also those of targets, probes and pictures.
PlainLayerNorm = partial(nn.LayerNorm, eps=1e-5, elementwise_affine=False)


@torch.fx.wrap
def sincos_2d(grid: tuple[int, int], dim: int, device: torch.device | None = None) -> Tensor:
    """Compute the fixed position of every cell of a grid, row by row: (rows * columns, dim), fp32.

    Each position is [sin(y w), cos(y w), sin(x w), cos(x w)] with dim/4 frequencies w_k = 10000^(-k / (dim/4)).

    Raises:
        ValueError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"embed_dim: expected a multiple of 4 for 2D sin-cos positions, got {dim}")
    dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64  # which MPS has not
    frequencies = 10000 ** -(torch.arange(dim // 4, dtype=dtype, device=device) / (dim // 4))
    rows, columns = grid
    y = torch.arange(rows, dtype=dtype, device=device)[:, None] * frequencies
    x = torch.arange(columns, dtype=dtype, device=device)[:, None] * frequencies
    y = torch.cat([y.sin(), y.cos()], dim=-1)[:, None].expand(-1, columns, -1)
    x = torch.cat([x.sin(), x.cos()], dim=-1)[None].expand(rows, -1, -1)
    return torch.cat([y, x], dim=-1).reshape(-1, dim).float()


def draw_normal(weight: Tensor, std: float) -> None:
    """Fill a weight with normal random numbers of spread `std`.

    torch 2.9 and older draw infinity about once in 2**25 numbers, and cut it to the bounds, of which the default is 2,
    a hundred spreads. No other number reaches 7 spreads.
    """
    nn.init.trunc_normal_(weight, std=std, a=-7 * std, b=7 * std)


def swiglu_width(dim: int) -> int:
    """Return the hidden width of the SwiGLU: 8/3 of `dim`, rounded to a multiple of 128."""
    return 128 * round(8 / 3 * dim / 128)


class SwiGLU(GluMlp):
    """Compute a gated MLP without biases, SiLU(gate) * value, then a projection: (B, N, D) -> (B, N, D).

    Args:
        width: of the gate, and of the value.
    """

    def __init__(
        self, dim: int, width: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, 2 * width, act_layer=nn.SiLU, bias=False, gate_last=False, **dd)
        draw_again(self.fc1, self.fc2)


class Block(nn.Module):
    """Compute a transformer block in the residual form of the released SCOTT: (B, N, D) -> (B, N, D).

    x <- x + attention(norm(x)); x <- norm(x); x <- x + mlp(x). The MLP is added to the *normalised* x, so this is
    neither a pre-norm nor a post-norm block; the published results rest on it. No linear layer has a bias; the MLP is
    a SwiGLU whose width is 8/3 D rounded to a multiple of 128.

    Args:
        proj_drop: dropout after the attention's output projection, and nowhere else.
        drop_path: probability that a residual branch is skipped for one image.
        timm_options: what timm's VisionTransformer hands to any block and SCOTT leaves fixed; ignored.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **timm_options: object,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = PlainLayerNorm(dim)
        self.attn = Attention(dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop, **dd)
        self.mlp = SwiGLU(dim, swiglu_width(dim), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    @fast_cpu.convolve_linear_layers
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm(x), attn_mask=attn_mask, is_causal=is_causal))
        x = self.norm(x)
        return x + self.drop_path(self.mlp(x))

    def attention_map(self, x: Tensor) -> Tensor:
        """Return the softmaxed attention of this block for its input x (B, N, D): (B, heads, N, N), rows sum to 1."""
        qkv = self.attn.qkv(self.norm(x))
        q, k, _ = rearrange(qkv, "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.attn.num_heads)
        return (q * self.attn.scale @ k.transpose(-2, -1)).softmax(dim=-1)

    def init_weights(self, residual_divisor: float) -> None:
        """Draw weights of spread 0.02, smaller ones in the two layers that end a residual branch."""
        for linear in (self.attn.qkv, self.mlp.fc1):
            draw_normal(linear.weight, 0.02)
        for linear in (self.attn.proj, self.mlp.fc2):
            draw_normal(linear.weight, 0.02 / residual_divisor)
