"""Gather rows from all processes, for losses that compare images, and unwrap modules that processes share."""

from typing import Any

import torch
from torch import Tensor, distributed


def unwrap(module: Any) -> Any:
    """Return the module inside a wrapper such as DistributedDataParallel, or the module itself if it has none."""
    return getattr(module, "module", module)


def gather(x: Tensor) -> tuple[Tensor, int]:
    """Gather the rows of all processes, with gradients.

    Args:
        x: (n, ...), rows of this process; every process has equally many.

    Returns:
        the rows of all processes, (processes * n, ...), and the number of rows before those of this process.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x, 0
    return Gathered.apply(x), distributed.get_rank() * len(x)


class Gathered(torch.autograd.Function):
    """Concatenate the rows of all processes; the gradient of a process's own rows is the sum over all processes.

    torch.distributed.nn.functional.all_gather gives other gradients on gloo where a loss gathers twice (torch 2.14).
    """

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
