"""MaskedConv2d: a convolution that cannot see hidden cells, the building block of SCOTT's stem."""

import torch
from torch import Tensor, nn


def hide(x: Tensor, visible: Tensor | None) -> Tensor:
    """Zero the hidden cells of a map: x (B, C, H, W), visible bool (B, 1, h, w), where h divides H and w divides W.

    Without `visible` the map is returned as it is.
    """
    if visible is None:
        return x
    scale_y, scale_x = x.shape[-2] // visible.shape[-2], x.shape[-1] // visible.shape[-1]
    visible = visible.repeat_interleave(scale_y, dim=-2).repeat_interleave(scale_x, dim=-1)
    return torch.where(visible, x, 0.0)  # no product: hidden values cannot leak, even if they are infinite or NaN


class MaskedConv2d(nn.Conv2d):
    """Convolve a map without looking at its hidden cells: x (B, C, H, W), visible bool (B, 1, h, w) -> (B, D, H', W').

    Hidden cells are zero in what the convolution reads and in what it returns. So this dense convolution computes what
    a submanifold sparse convolution computes, and nothing hidden reaches a visible cell, however large the kernel is.
    The rows h and columns w of `visible` must divide those of the input and of the output. Without `visible` this is
    nn.Conv2d, whose arguments it takes.

    Source: paper, Section 3.

    Example:
        >>> conv = MaskedConv2d(3, 64, kernel_size=7, stride=2, padding=3)
        >>> visible = torch.rand(8, 1, 14, 14) < 0.4  # patches of 16 pixels
        >>> conv(torch.randn(8, 3, 224, 224), visible)  # (8, 64, 112, 112), zero wherever `visible` is False
    """

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        return hide(self._conv_forward(hide(x, visible), self.weight, self.bias), visible)
