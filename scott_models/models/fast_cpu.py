"""The same products as torch's own modules, by the shortest way on a CPU."""

import ctypes
import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# In fp32 torch hands products to MKL and convolutions to oneDNN, which on an AMD processor with AVX512 is twice as fast
# (docs/BENCHMARKS.md); others were not tried.
PIECE = 4 * 224 * 224  # pixels of images whose maps fit a CPU's caches
CONVOLVES_FASTER = torch.backends.cpu.get_cpu_capability() == "AVX512"
# Whether the processor multiplies bfloat16 itself.
MULTIPLIES_BFLOAT16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # before torch 2.7 nobody knows


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is allocated next, in this process, from now on.

    It hands large buffers back to the system, which then clears every page of the next one before its first use: half
    of a training step's time with batches of 128 images (docs/BENCHMARKS.md). Of other C libraries nothing is asked.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@torch.fx.wrap
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, (..., I) -> (..., O); on a CPU in fp32 as a convolution of one pixel."""
    if not torch.jit.is_scripting() and _convolves(x, weight):
        pixels = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
        return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


@torch.jit.unused
def _convolves(x: Tensor, weight: Tensor) -> bool:
    fp32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    plain = type(weight) in (Tensor, nn.Parameter)  # not quantised, for one
    for_others = is_exporting() or torch.jit.is_tracing()  # a graph may go to another machine
    return CONVOLVES_FASTER and fp32 and plain and x.device.type == "cpu" and not for_others and x.numel() > 0


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@torch.jit.unused
def is_symbolic(x: Tensor) -> bool:
    """Whether torch.fx is tracing, for which a batch has no size yet."""
    return isinstance(x, torch.fx.Proxy)


def piecewise(function: Callable[..., Tensor], size: int, *batches: Tensor | None) -> Tensor:
    """function(*batches), of `size` (at least 1) at a time where that pays: on a CPU, whose caches hold a piece's maps.

    Not where gradients are wanted, nor for a compiler or a tracer, which wants to see a batch as one.
    """
    first = batches[0]
    assert first is not None
    alone = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    if alone or first.device.type != "cpu" or len(first) <= size:
        return function(*batches)
    size = max(1, size)
    count = -(-len(first) // size)
    pieces = zip(*([None] * count if batch is None else batch.split(size) for batch in batches))
    return torch.cat([function(*piece) for piece in pieces])
