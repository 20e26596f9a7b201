"""Attentive pooling: what the paper's stronger probe puts between frozen patch features and a linear layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast_cpu
from .layers import SwiGLU, draw_normal, swiglu_width

HEADS = 4


class Weight(nn.Module):
    """Hold a bare matrix (rows, columns). It is no nn.Linear, which LoRA and quantisers would replace."""

    def __init__(
        self, rows: int, columns: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, device=device, dtype=dtype))


class AttentivePool(nn.Module):
    """Pool patch features by one learned query: (B, N, D) -> (B, D).

    x <- query + attention(query, norm(features)); x <- norm(x); x <- x + mlp(x); x <- norm(x). Norms have parameters,
    linear layers no biases. Source: paper, Appendix E.1; released code for dropout and the initialisation.

    The query is the same for all images, so no key or value of a single patch is ever needed: a head's scores are
    products of the patches with one vector, and what it sees is one average of them, projected once. The first norm's
    scale and shift are applied to these two, not to the patches, of which no gradient is then taken where they are
    frozen. The same result with a hundredth of the products.

    Args:
        drop: dropout of the attention's weights and of its output.

    Raises:
        ValueError: dim is not a multiple of the 4 heads.
    """

    def __init__(
        self, dim: int, drop: float = 0.2, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        if dim % HEADS:
            raise ValueError(f"embed_dim: expected a multiple of {HEADS} for the attentive pool's heads, got {dim}")
        super().__init__()
        self.num_heads = HEADS
        dd = {"device": device, "dtype": dtype}
        self.query = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.q = nn.Linear(dim, dim, bias=False, **dd)
        self.kv = Weight(2 * dim, dim, **dd)
        self.attn_drop = nn.Dropout(drop)
        self.proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(drop)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = SwiGLU(dim, swiglu_width(dim), **dd)
        self.norm3 = nn.LayerNorm(dim, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw weights and query from a truncated normal distribution of spread 0.02."""
        for weight in (self.query, self.q.weight, self.kv.weight, self.proj.weight, *self.mlp.parameters()):
            draw_normal(weight, 0.02)
        for norm in (self.norm1, self.norm2, self.norm3):
            norm.reset_parameters()

    @fast_cpu.convolve_linear_layers
    def forward(self, features: Tensor) -> Tensor:
        scale, shift = self.norm1.weight, self.norm1.bias
        x = F.layer_norm(features, self.norm1.normalized_shape, eps=self.norm1.eps)
        query = self.query[:, 0]
        keys, values = self.kv.weight.unflatten(0, (2, self.num_heads, -1)).unbind(0)  # (heads, d, D) each
        asked = self.q(query).view(self.num_heads, 1, -1) @ keys * scale  # (heads, 1, D)
        scores = x @ asked[:, 0].T * keys.shape[1] ** -0.5  # (B, N, heads); the shift would add the same to all patches
        weights = self.attn_drop(scores.softmax(dim=1)).transpose(1, 2)
        seen = weights @ x * scale + weights.sum(dim=2, keepdim=True) * shift  # (B, heads, D)
        attended = torch.einsum("bhe,hde->bhd", seen, values).flatten(1)
        x = self.norm2(query + self.proj_drop(self.proj(attended)))
        return self.norm3(x + self.mlp(x))
