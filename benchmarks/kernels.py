"""Time our short ways beside torch's own, in turn, in one process: the parts of a step in docs/BENCHMARKS.md.

The shapes are those of sixteen images at 224 px in SCOTT-12/16. The results of both ways must agree, except for random
dropout; otherwise an AssertionError is raised.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scott_models.models import attention, fast_cpu, max_blur_pool

BATCH, TOKENS, HEADS, DIM = 16, 196, 6, 384
TURNS = 9


def milliseconds(*functions: Callable[[], object]) -> list[float]:
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(TURNS + 2):
        for function, own in zip(functions, times):
            started = time.perf_counter()
            function()
            if turn >= 2:
                own.append(1e3 * (time.perf_counter() - started))
    return [round(statistics.median(own), 1) for own in times]


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Any]:
    grad = torch.ones_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def row(what: str, theirs: Callable[[], Any], ours: Callable[[], Any], *, same: bool = True) -> dict[str, Any]:
    if same:
        for one, other in zip(ours(), theirs()):
            error = (one.float() - other.float()).norm() / other.float().norm().clamp(min=1e-6)
            assert error < 0.02, f"{what}: {error}"
    one, other = milliseconds(theirs, ours)
    return {"what": what, "torch's own, ms": one, "ours, ms": other, "x": round(one / other, 1)}


def maps(channels: int, side: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(BATCH, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def pool_by_torch(x: Tensor, kernel: Tensor) -> Tensor:
    x = F.max_pool2d(x, 2, stride=1)
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), stride=2, padding=1, groups=x.shape[1])


def rows() -> list[dict[str, Any]]:
    bf16 = torch.bfloat16
    qkv = torch.randn(BATCH, TOKENS, 3 * DIM).to(bf16).requires_grad_()

    def heads(attend: Callable[..., Tensor], p: float) -> Callable[[Tensor], Tensor]:
        def function(qkv: Tensor) -> Tensor:
            return attend(*qkv.view(BATCH, TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0), p)

        return function

    def fused(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)

    table = []
    with torch.no_grad():
        pair = [lambda a=a: [heads(a, 0.0)(qkv)] for a in (fused, attention.attend)]
        table.append(row("attention, bf16", *pair))
    pair = [gradients(heads(a, 0.0), qkv) for a in (fused, attention.attend)]
    table.append(row("attention, bf16, with gradients", *pair))
    pair = [gradients(heads(a, 0.1), qkv) for a in (fused, attention.attend)]
    table.append(row("attention with dropout, bf16, with gradients", *pair, same=False))
    weights = torch.randn(BATCH, HEADS, TOKENS, TOKENS).to(bf16)
    pair = [lambda f=f: f(weights, 0.1) for f in (F.dropout, fast_cpu.dropout)]
    table.append(row("dropout of attention weights, bf16", *pair, same=False))
    tokens, matrix = torch.randn(BATCH, TOKENS, DIM, requires_grad=True), torch.randn(2048, DIM, requires_grad=True)
    linear = fast_cpu.shortcut(fast_cpu.linear)(F.linear)
    with torch.no_grad():
        pair = [lambda f=f: [f(tokens, matrix)] for f in (F.linear, linear)]
        table.append(row("linear layer 384 to 2048, fp32", *pair))
    pair = [gradients(f, tokens, matrix) for f in (F.linear, linear)]
    table.append(row("linear layer 384 to 2048, fp32, with gradients", *pair))
    for channels, side in ((64, 112), (384, 28)):
        pool, x = max_blur_pool.MaxBlurPool(), maps(channels, side, bf16)
        kernel = pool.blur.to(bf16)
        pair = [gradients(f, x) for f in (lambda x, kernel=kernel: pool_by_torch(x, kernel), pool)]
        table.append(row(f"max-blur pool of {channels} maps of {side} px, bf16, with gradients", *pair))
    return table
