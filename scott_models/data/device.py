"""Copy small tensors to a GPU without waiting for it, and compile functions once."""

import getpass
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..console import say

ALIGNED = 16  # bytes, a multiple of every dtype's size


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor from the CPU to a device, without waiting for the device's current work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def copy_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy small tensors from the CPU to a device in one transfer, without waiting for the device's current work."""
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    starts = list(accumulate(sizes, initial=0))
    for tensor, start in zip(tensors, starts):
        packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    on_device = packed.to(device, non_blocking=True)
    return [
        on_device[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, start in zip(tensors, starts)
    ]


def name_compiler_cache() -> None:
    """Name the folder in which torch.compile keeps what it made, unless torch can name it by the user.

    Older versions of torch fail for a user without a name, e.g. a number that a container was started with.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        folder = Path(tempfile.gettempdir()) / f"torchinductor_{getattr(os, 'getuid', int)()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


@cache
def compile_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function with torch.compile, once per process; if this fails, print a note and use the function."""
    name_compiler_cache()
    best = torch.compile(function)

    def call(*arguments: Any) -> Tensor:
        nonlocal best
        try:
            return best(*arguments)
        except Exception as error:  # dynamo, inductor, triton and compilers raise many kinds of errors
            if best is function or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}"
            say(f"{function.__name__}: torch.compile failed ({reason}); continuing without it")
            best = function
            return function(*arguments)

    return call
