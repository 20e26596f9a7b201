import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from scott_models.models import fast_cpu
from scott_models.models.linear import Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 12), (5, 12), (12,), (0, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_and_its_gradients_are_torchs(bias, shape, dtype, monkeypatch):
    monkeypatch.setattr(fast_cpu, "CONVOLVES_FASTER", True)
    layer = Linear(12, 8, bias=bias, dtype=dtype)
    ours, theirs = (torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    ours.requires_grad_()
    theirs.requires_grad_()
    found, expected = layer(ours), F.linear(theirs, layer.weight, layer.bias)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    inputs = [ours, *layer.parameters()], [theirs, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs[0]),
        torch.autograd.grad((expected * weights).sum(), inputs[1]),
    ):
        torch.testing.assert_close(one, other)


def test_linear_follows_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(12, 8)(torch.randn(3, 12)).dtype == torch.bfloat16


FAULTS = """
import resource
import torch
from scott_models.models.fast_cpu import keep_freed_memory

KEEP and keep_freed_memory()
for _ in range(30):  # aligned buffers only fit into what lies free side by side, which takes some rounds to form
    torch.zeros(16_000_000)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_used_again():
    """Without, each of the 15,625 pages is asked for and cleared again."""
    faults = {}
    for keep in ("True", "False"):
        ran = subprocess.run([sys.executable, "-c", FAULTS.replace("KEEP", keep)], capture_output=True, check=True)
        faults[keep] = int(ran.stdout)
    if faults["False"] < 1000:
        pytest.skip(f"pages are large here: {faults['False']} hold 64 MB, too few to tell")
    assert faults["True"] < faults["False"] / 10


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_drops_its_share_and_keeps_the_mean(p, dtype, monkeypatch):
    monkeypatch.setattr(fast_cpu.F, "dropout", None)  # it draws for itself
    found = fast_cpu.dropout(torch.ones(1001, 999, dtype=dtype), p)
    assert found.dtype == dtype
    assert (found == 0).double().mean().item() == pytest.approx(p, abs=0.002)  # four standard deviations and more
    assert found.double().mean().item() == pytest.approx(1, abs=0.005)


def test_decisions_are_independent():
    """Neighbours, which share a random word, and calls."""
    first, second = (fast_cpu.dropout(torch.ones(1000, 1000), 0.5) / 2 - 0.5 for _ in range(2))
    for other in (second, *(first.roll(shift, dims=1) for shift in (1, 2, 3, 4))):
        assert (first * other).mean().abs() < 4 * 0.25 / 1000


def test_dropout_is_the_seeds():
    x = torch.ones(5, 7)  # no multiple of four
    torch.manual_seed(0)
    first, second = fast_cpu.dropout(x, 0.5), fast_cpu.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(fast_cpu.dropout(x, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_or_everything_dropped(p):
    assert torch.equal(fast_cpu.dropout(torch.ones(4), p), torch.full((4,), 1 - p))


def test_shortcuts_are_for_tensors_that_a_cpu_computes_now():
    seen = []

    def fast(x):
        seen.append(type(x))
        return None if x.numel() > 3 else 2 * x

    double = fast_cpu.shortcut(fast)(lambda x: x + x)
    assert double(torch.ones(2)).tolist() == [2, 2]
    assert double(torch.ones(4)).tolist() == [2] * 4  # the shortcut declines
    assert len(seen) == 2
    double(torch.ones(2, device="meta"))
    torch.func.vmap(double)(torch.ones(2, 2))
    torch.jit.trace(double, torch.ones(2), check_trace=False)
    torch.compile(double, backend="eager", fullgraph=True)(torch.ones(2))
    assert len(seen) == 2
