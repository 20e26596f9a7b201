"""Rows of all processes, where a loss compares images, and modules that several processes share."""

from typing import Any

import torch
from torch import Tensor, distributed


def unwrap(module: Any) -> Any:
    """Return a module itself, or what a wrapper of several processes holds."""
    return getattr(module, "module", module)


def gather(x: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, with gradients, and how many come before this one's own."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x, 0
    return Gathered.apply(x), distributed.get_rank() * len(x)


class Gathered(torch.autograd.Function):
    """Concatenate all processes' x; the gradient of a process's own is the sum of all processes'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.chunk(distributed.get_world_size())[distributed.get_rank()]
