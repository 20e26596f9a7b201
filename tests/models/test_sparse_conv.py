import pytest
import torch
import torch.nn.functional as F

from scott_models.models import sparse_conv, tokenizer
from scott_models.models.sparse_conv import sparse_conv2d
from scott_models.models.tokenizer import SparseConvTokenizer


def inputs(dtype=torch.float64, channels_last=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 12, 16, generator=generator).to(dtype)
    weight = torch.randn(8, 3, 7, 7, generator=generator).to(dtype)
    cells = torch.rand(5, 1, 6, 8, generator=generator) < 0.4
    cells[0], cells[1] = False, True  # nothing, and everything
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout).requires_grad_(), weight.requires_grad_(), cells


def dense(x, weight, cells):
    return torch.where(cells, F.conv2d(x, weight, stride=2, padding=3), 0.0)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_are_a_dense_convolutions(channels_last, compiled, monkeypatch):
    monkeypatch.setattr(sparse_conv, "PIECE", 2 * 8 * 8)
    x, weight, cells = inputs(channels_last=channels_last)
    convolve = torch.compile(sparse_conv2d, fullgraph=True, backend="aot_eager") if compiled else sparse_conv2d
    found, expected = convolve(x, weight, cells), dense(x, weight, cells)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (x, weight)),
        torch.autograd.grad((expected * weights).sum(), (x, weight)),
    ):
        torch.testing.assert_close(one, other)


def test_the_operators_keep_torchs_rules():
    x, weight, cells = inputs(torch.float32)
    torch.library.opcheck(sparse_conv._forward, (x, weight, cells))


def test_what_is_hidden_leaks_nowhere():
    x, weight, cells = inputs()
    found = sparse_conv2d(x.detach(), weight.detach(), cells)
    assert (found[(~cells).expand_as(found)] == 0).all()


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_the_tokenizer_gives_the_same_either_way(precision, visible, monkeypatch):
    stem = SparseConvTokenizer(img_size=64, embed_dim=32)
    images = torch.randn(2, 3, 64, 64)
    results = []
    for gains in (False, True):
        monkeypatch.setattr(tokenizer, "gains", lambda x, gains=gains: gains)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            tokens = stem(images, visible)
        gradients = torch.autograd.grad(tokens.float().square().sum(), list(stem.parameters()))
        results.append((tokens, *gradients))
    for one, other in zip(*results):
        bound = 0.02 * other.abs().max().item() if precision == "autocast" else 1e-4
        torch.testing.assert_close(one, other, rtol=1e-4, atol=bound)
