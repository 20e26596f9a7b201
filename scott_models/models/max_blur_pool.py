"""MaxBlurPool: the largest of each window, blurred, at half the size (arXiv 1904.11486)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fast_cpu import PIECE, piecewise


def _max(x: Tensor) -> Tensor:
    """Dense maximum over 2x2: (B, C, H, W) -> (B, C, H - 1, W - 1). Twice two views, faster than a pool's kernel."""
    x = torch.maximum(x[:, :, :, :-1], x[:, :, :, 1:])
    return torch.maximum(x[:, :, :-1], x[:, :, 1:])


def _max_backward(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of `_max` (B, C, H - 1, W - 1) -> of x: all of it goes to a window's first maximum, row by row."""
    if torch.compiler.is_compiling():  # which makes one loop of it
        wide = torch.maximum(x[:, :, :, :-1], x[:, :, :, 1:])
        upper = grad * (wide[:, :, :-1] >= wide[:, :, 1:])
        grad = F.pad(upper, (0, 0, 0, 1)) + F.pad(grad - upper, (0, 0, 1, 0))
        left = grad * (x[:, :, :, :-1] >= x[:, :, :, 1:])
        return F.pad(left, (0, 1)) + F.pad(grad - left, (1, 0))
    window, stride, padding, dilation = [2, 2], [1, 1], [0, 0], [1, 1]
    _, places = torch.ops.aten.max_pool2d_with_indices(x, window, stride)
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, window, stride, padding, dilation, False, places)


def _blur(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    channels = int(x.shape[1])  # a number to the TorchScript exporter of ONNX as well
    return F.conv2d(x, kernel.to(x.dtype).expand(channels, 1, 3, 3), stride=stride, padding=1, groups=channels)


def _blur_backward(grad: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of `_blur` of stride 2: of the gradient with zeros in between, the same blur of stride 1."""
    batch, channels, rows, columns = grad.shape
    dilated = grad.new_zeros(batch, 2 * rows - 1, 2 * columns - 1, channels).permute(0, 3, 1, 2)
    dilated[:, :, ::2, ::2] = grad
    return _blur(dilated, kernel, stride=1)


class _MaxBlur(torch.autograd.Function):
    """Max and blur, with a backward pass that keeps x alone and takes a fraction of autograd's time on a CPU."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernel: Tensor) -> Tensor:
        return _blur(_max(x), kernel, stride=2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, kernel = ctx.saved_tensors
        size = 16 * PIECE // x[0].numel()  # conv1's output has 16 numbers for each pixel
        return piecewise(lambda x, grad: _max_backward(x, _blur_backward(grad, kernel)), size, x, grad), None


@torch.fx.wrap
def max_blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Dense maximum over 2x2, then a blur of stride 2: x (B, C, H, W) even, kernel (1, 1, 3, 3) -> (B, C, H/2, W/2)."""
    if not torch.jit.is_scripting() and torch.is_grad_enabled() and x.requires_grad and not torch.jit.is_tracing():
        return _MaxBlur.apply(x, kernel)
    return _blur(_max(x), kernel, stride=2)


class MaxBlurPool(nn.Module):
    """Halve a map without aliasing: (B, C, H, W) -> (B, C, H/2, W/2) for even H and W.

    A dense maximum over 2x2 (H - 1 rows remain), then a fixed binomial blur (1 2 1) of stride 2 (Zhang, 2019).
    """

    blur: Tensor

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.register_buffer("blur", torch.empty(1, 1, 3, 3, device=device, dtype=dtype), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.blur.copy_(torch.outer(binomial, binomial))

    def forward(self, x: Tensor) -> Tensor:
        return max_blur(x, self.blur)
