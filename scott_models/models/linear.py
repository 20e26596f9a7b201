"""The linear layer of the transformer blocks: torch's own, with a shortcut for CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast_cpu


@torch.fx.wrap
@fast_cpu.shortcut(fast_cpu.linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply with a matrix: x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """Compute nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
