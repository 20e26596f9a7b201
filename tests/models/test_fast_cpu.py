import copy
import io
import pickle
import platform
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from scott_models.models import fast_cpu
from scott_models.models.layers import Block


class Layer(nn.Module):
    """Hold a linear layer whose fp32 products are convolutions."""

    def __init__(self, bias=False, dtype=None):
        super().__init__()
        self.linear = nn.Linear(12, 8, bias=bias, dtype=dtype)

    @fast_cpu.convolve_linear_layers
    def forward(self, x):
        return self.linear(x)


@pytest.fixture
def convolved(monkeypatch):
    """Take the convolutions on any processor; list the shapes that they computed."""
    convolve, shapes = fast_cpu.linear, []

    def note(*inputs):
        if (result := convolve(*inputs)) is not None:
            shapes.append(tuple(inputs[0].shape))
        return result

    monkeypatch.setattr(fast_cpu, "CONVOLVES_FASTER", True)
    monkeypatch.setattr(fast_cpu, "linear", note)
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 12), (5, 12), (12,), (0, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_and_its_gradients_are_torchs(bias, shape, dtype, convolved):
    module = Layer(bias, dtype)
    ours, theirs = (torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    ours.requires_grad_()
    theirs.requires_grad_()
    found, expected = module(ours), F.linear(theirs, module.linear.weight, module.linear.bias)
    assert convolved == ([shape] if dtype == torch.float32 and ours.numel() else [])
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    inputs = [ours, *module.parameters()], [theirs, *module.parameters()]
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs[0]),
        torch.autograd.grad((expected * weights).sum(), inputs[1]),
    ):
        torch.testing.assert_close(one, other)


def test_linear_follows_autocast(convolved):
    with torch.autocast("cpu", torch.bfloat16):
        assert Layer()(torch.randn(3, 12)).dtype == torch.bfloat16
    assert not convolved


def test_only_what_is_decorated_is_convolved(convolved):
    module = Layer()
    module.linear(torch.randn(3, 12))
    module(input := torch.randn(3, 12))
    assert len(convolved) == 1
    with pytest.raises(RuntimeError):
        module(input[:, :5])
    F.linear(input, weight=module.linear.weight)  # the error ended it
    assert len(convolved) == 1


def normed(block):
    parametrizations.weight_norm(block.mlp.fc1)
    with warnings.catch_warnings(action="ignore"):  # torch replaces the old one
        nn.utils.weight_norm(block.mlp.fc2)
    return block


def of_another_class(block):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    block.mlp.fc1.__class__ = Doubled
    return block


def saved(block):
    torch.save(block, file := io.BytesIO())
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def shallow(block):
    """As DataParallel copies: the same modules, with other weights."""
    other = copy.copy(block)
    other._modules = dict(block._modules)
    other.mlp = copy.copy(block.mlp)
    other.mlp._modules = {**block.mlp._modules, "fc2": copy.copy(block.mlp.fc2)}
    other.mlp.fc2._parameters = {"weight": nn.Parameter(2 * block.mlp.fc2.weight), "bias": None}
    return other


def partly_compiled(block):
    block.mlp.compile(backend="aot_eager", fullgraph=True)
    return block


def hooked(block):
    block.attn.qkv.register_forward_hook(lambda module, inputs, output: 2 * output)
    return block


def quantised(block):
    with warnings.catch_warnings(action="ignore"):  # torch moves it to torchao
        return torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, dtype=torch.qint8)


CHANGES = {
    "deepcopy": (copy.deepcopy, 4),
    "pickle": (lambda block: pickle.loads(pickle.dumps(block)), 4),
    "save": (saved, 4),
    "shallow copy": (shallow, 4),
    "weight norm": (normed, 4),
    "pruned": (lambda block: prune.l1_unstructured(block.mlp.fc1, "weight", amount=0.5) and block, 4),
    "another class": (of_another_class, 4),
    "hook": (hooked, 4),
    "partly compiled": (partly_compiled, 2),
    "quantised": (quantised, 0),
}


@pytest.mark.parametrize(("change", "convolutions"), CHANGES.values(), ids=CHANGES)
def test_what_others_make_of_linear_layers_stays(change, convolutions, convolved, monkeypatch):
    """Compare the changed block with itself on a processor that takes the plain path."""
    block, x = change(Block(32, 2).eval()), torch.randn(2, 5, 32)
    found = block(x)
    assert len(convolved) == convolutions
    monkeypatch.setattr(fast_cpu, "CONVOLVES_FASTER", False)
    torch.testing.assert_close(found, block(x))


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


def test_convolutions_are_for_layers_that_a_cpu_computes_now(convolved):
    module, x = Layer(), torch.ones(2, 12)
    module(x)
    assert len(convolved) == 1
    Layer().to("meta")(x.to("meta"))
    torch.func.vmap(module)(x)
    torch.compile(module, backend="eager", fullgraph=True)(x)
    torch.export.export(module, (x,))
    torch.fx.symbolic_trace(module)(x)
    with warnings.catch_warnings(action="ignore"):  # torch warns that script and trace will go
        torch.jit.trace(module, x, check_trace=False)(x)
        torch.jit.script(module)(x)
    assert len(convolved) == 1
