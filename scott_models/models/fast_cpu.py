"""Shortcuts for CPUs: the same results as the plain path of the models, in less time.

The model files contain the plain path. The decorators `shortcut` and `convolve_linear_layers` are the only ways to this
file: they take a shortcut only where a CPU computes right now, so exporters, compilers and tracers see the plain path.
What each shortcut gains is in docs/BENCHMARKS.md.
"""

import ctypes
import platform
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Plain = TypeVar("Plain", bound=Callable[..., Tensor])
MULTIPLIES_BFLOAT16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()  # in hardware
LARGEST_WRITTEN_OUT = 2**25  # attention weights of one image, all heads: 64 MiB in bfloat16
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def shortcut(fast: Callable[..., Tensor | None]) -> Callable[[Plain], Plain]:
    """Decorate a plain function so that `fast` computes its result where a CPU computes eagerly.

    Args:
        fast: takes the same arguments; it returns None where it would not be faster.
    """

    def decorate(plain: Plain) -> Plain:
        @wraps(plain)  # TorchScript follows this to the plain function
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = fast(x, *args, **kwargs) if is_eager_on_cpu(x) else None
            return plain(x, *args, **kwargs) if result is None else result

        return call  # type: ignore[return-value]

    return decorate


def is_eager_on_cpu(x: object) -> bool:
    """Tell whether x is a plain tensor that a CPU works on right now, not one that is traced, compiled or exported."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _is_plain(x):
        return False
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(x)  # by vmap or grad of torch.func
    return x.device.type == "cpu" and not transformed  # type: ignore[attr-defined]


def _is_plain(x: object) -> bool:
    """Return False for subclasses of Tensor, such as those of quantised weights."""
    return type(x) in (Tensor, nn.Parameter)


def attend(
    q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor | None:
    """Compute attention by plain matrix products.

    torch's fused CPU kernel cannot drop weights. In bfloat16 it takes twice the time of plain products where the
    processor multiplies bfloat16 in hardware. But it never holds the N x N weights, so large images still use it.
    """
    weights = q.shape[1] * q.shape[2] * k.shape[2]
    slow = p > 0 or (q.dtype == torch.bfloat16 and MULTIPLIES_BFLOAT16)
    if attn_mask is not None or is_causal or not slow or weights > LARGEST_WRITTEN_OUT:
        return None
    return dropout((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1), p) @ v


def dropout(x: Tensor, p: float) -> Tensor:
    """Compute F.dropout in training, with p rounded to 1/65536 and four decisions from each random word of 64 bits.

    `bernoulli_`, which F.dropout calls, takes a word for each decision.
    """
    dropped = int(p * 2**16 + 0.5)
    if not 0 < dropped < 2**16:
        return F.dropout(x, p)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape).ge_(dropped - 2**15)
    ones = kept.mul_(0x3F80).view(torch.bfloat16)  # the bits of 1.0
    return x * ones.to(x.dtype) * (2**16 / (2**16 - dropped))


def max_blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Compute the maximum by two `torch.maximum` of shifted views, and the gradient by `_MaxBlur`."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _MaxBlur.apply(x, kernel)
    return _blur(_max(x), kernel, stride=2)


def _max(x: Tensor) -> Tensor:
    x = torch.maximum(x[:, :, :, :-1], x[:, :, :, 1:])
    return torch.maximum(x[:, :, :-1], x[:, :, 1:])


def _blur(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    channels = x.shape[1]
    return F.conv2d(x, kernel.to(x.dtype).expand(channels, 1, 3, 3), stride=stride, padding=1, groups=channels)


class _MaxBlur(torch.autograd.Function):
    """Max and blur, with a backward pass that keeps x alone and takes a fraction of autograd's time."""

    @staticmethod
    def forward(x: Tensor, kernel: Tensor) -> Tensor:
        return _blur(_max(x), kernel, stride=2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Blur the gradient with zeros in between, then give all of it to the first maximum of each window."""
        x, kernel = ctx.saved_tensors
        batch, channels, rows, columns = grad.shape
        dilated = grad.new_zeros(batch, 2 * rows - 1, 2 * columns - 1, channels).permute(0, 3, 1, 2)
        dilated[:, :, ::2, ::2] = grad
        grad = _blur(dilated, kernel, stride=1)
        window, stride, padding, dilation = [2, 2], [1, 1], [0, 0], [1, 1]
        _, places = torch.ops.aten.max_pool2d_with_indices(x, window, stride)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return backward(grad, x, window, stride, padding, dilation, False, places), None


def _is_amd() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and "AuthenticAMD" in info.read_text(encoding="utf-8")[:1000]


CONVOLVES_FASTER = _is_amd()


def convolve_linear_layers(plain: Plain) -> Plain:
    """Decorate a method of a module, (self, x, ...) -> Tensor, so that the linear layers in it compute by `linear`.

    The layers stay torch's own. A subclass would be passed over by the tools that ask for exactly nn.Linear, such as
    quantisers. The module's hooks, copies and adapters (LoRA) work as always, because only F.linear is replaced.
    """

    @wraps(plain)  # TorchScript follows this to the plain method
    def call(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not _convolves_faster(x):
            return plain(self, x, *args, **kwargs)
        with _ConvolvingLinear():
            return plain(self, x, *args, **kwargs)

    return call  # type: ignore[return-value]


class _ConvolvingLinear(TorchFunctionMode):
    """Replace F.linear by `linear` in this thread, where `linear` is faster."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = linear(*args, **kwargs) if function is F.linear else None
        return function(*args, **kwargs) if result is None else result


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Compute F.linear in fp32 as a convolution of one pixel; return None where this would not be faster.

    torch gives matrix products to MKL and convolutions to oneDNN, which is faster on AMD processors. On others this was
    not measured, and they take the plain path.
    """
    if not (_convolves_faster(input) and _is_plain(weight) and weight.dtype == torch.float32 and input.numel()):
        return None
    pixels = input.reshape(1, 1, -1, input.shape[-1]).permute(0, 3, 1, 2)
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*input.shape[:-1], -1)


def _convolves_faster(x: object) -> bool:
    return (
        CONVOLVES_FASTER
        and is_eager_on_cpu(x)
        and x.dtype == torch.float32  # type: ignore[attr-defined]
        and not torch.is_autocast_enabled("cpu")
    )


def keep_freed_memory() -> None:
    """Let glibc reuse the memory that this process frees, from now on; do nothing with other C libraries.

    By default glibc returns large buffers to the system, and the system then clears every page of the next buffer: half
    of the time of a training step with batches of 128 images. This setting holds for the whole process.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
