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
    from torch.distributed.nn.functional import all_gather  # some builds of torch lack this module

    return torch.cat(all_gather(x)), distributed.get_rank() * len(x)
