"""Join the processes of a launcher, gather rows from all of them, and unwrap modules that processes share."""

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ..errors import needs_extra

T = TypeVar("T")
PATIENCE = timedelta(hours=24)  # how long other processes wait for the first one, e.g. to decode all images


def join() -> Any:
    """Join the processes that a launcher started, and return what Accelerate knows about them, its `PartialState`.

    torch's launcher names no device. Without a GPU, Accelerate would then let each process train for itself, unless it
    is told to use the CPU.
    """
    with needs_extra("train"):
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    launched_on_cpu = "TORCHELASTIC_RUN_ID" in os.environ and not torch.accelerator.is_available()
    return PartialState(parse_flag_from_env("ACCELERATE_USE_CPU") or launched_on_cpu, timeout=PATIENCE)


def agree(value: T) -> T:
    """Return the value of the first process, on all processes."""
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]


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
