"""A convolution computed only where its output is visible, on a CPU: patches gathered, then one matrix product.

Two operators of torch's own kind, because how many cells are visible is known only when they run: a compiler sees
fixed shapes.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fast_cpu import MULTIPLIES_BFLOAT16

PIECE = 8 * 28 * 28  # cells of images whose patches fit a CPU's caches


@torch.jit.unused
def gains(x: Tensor) -> bool:
    """Whether this is faster than a dense convolution: where products of bfloat16 are as fast as convolutions."""
    return MULTIPLIES_BFLOAT16 and x.device.type == "cpu" and x.dtype == torch.bfloat16


def sparse_conv2d(x: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """The convolution of odd width k, stride 2 and padding k // 2, zero where `cells` is False.

    Args:
        x: (B, C, H, W), H and W even.
        weight: (D, C, k, k).
        cells: bool (B, 1, H / 2, W / 2).

    Returns:
        (B, D, H / 2, W / 2), channels last; the values, and the gradients, of a dense convolution times the cells.
    """
    return _forward(x, weight.to(x.dtype), cells)


@torch.library.custom_op("scott_models::sparse_conv2d", mutates_args=())
def _forward(x: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    matrix = _as_matrix(weight)
    out = torch.zeros_like(_like_output(x, weight))
    for piece, visible, result in _pieces(x, cells, out):
        where = visible.flatten().nonzero().flatten()
        rows = _patches(piece, visible, weight.shape[-1]) @ matrix.T
        result.permute(0, 2, 3, 1).view(-1, len(weight)).index_copy_(0, where, rows)
    return out


@torch.library.custom_op("scott_models::sparse_conv2d_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weight: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    grad = torch.where(cells, grad, 0.0).contiguous(memory_format=torch.channels_last)
    dims, padding = [1, 1], [weight.shape[-1] // 2] * 2
    for_x = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [2, 2], padding, dims, False, [0, 0], 1, [True, False, False]
    )[0]
    for_matrix = torch.zeros(_as_matrix(weight).shape, dtype=torch.promote_types(x.dtype, torch.float32))
    for piece, visible, result in _pieces(x, cells, grad):
        where = visible.flatten().nonzero().flatten()
        rows = result.permute(0, 2, 3, 1).reshape(-1, len(weight)).index_select(0, where)
        for_matrix += rows.T @ _patches(piece, visible, weight.shape[-1])
    d, c, k, _ = weight.shape
    for_weight = for_matrix.to(weight.dtype).view(d, k, k, c).permute(0, 3, 1, 2)
    return for_x.contiguous(memory_format=torch.channels_last), for_weight.contiguous(memory_format=torch.channels_last)


def _pieces(x: Tensor, cells: Tensor, out: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, PIECE // cells[0].numel())
    return zip(x.split(size), cells.split(size), out.split(size))


def _as_matrix(weight: Tensor) -> Tensor:
    """(D, C, k, k) -> (D, k * k * C), in the order of `_patches`."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _patches(x: Tensor, cells: Tensor, k: int) -> Tensor:
    """What the convolution looks at for each visible cell: x (B, C, H, W) -> (cells visible, k * k * C)."""
    border = k // 2
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, border, border, border, border))
    _, height, width, channels = padded.shape
    image, _, row, column = cells.nonzero().unbind(1)
    corner = (image * height + 2 * row) * width + 2 * column
    lines = corner[:, None] + torch.arange(k) * width
    # A line of a patch is k pixels, which lie next to each other: k gathers of a patch instead of k * k * C.
    runs = padded.view(-1).as_strided((padded[..., 0].numel() - k + 1, k * channels), (channels, 1))
    return runs.index_select(0, lines.flatten()).view(len(corner), -1)


def _like_output(x: Tensor, weight: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height // 2, width // 2, len(weight)).permute(0, 3, 1, 2)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    return _like_output(x, weight)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty_like(t, memory_format=torch.channels_last) for t in (x, weight))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward(grad, *ctx.saved_tensors), None


_forward.register_autograd(_differentiate, setup_context=_save)
