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
    from torch.distributed.nn.functional import all_gather  # which some builds of torch have not

    return torch.cat(all_gather(x)), distributed.get_rank() * len(x)
