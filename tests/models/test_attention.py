import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as TimmAttention

from scott_models.models import attention
from scott_models.models.attention import Attention, attend, dropout, kept
from scott_models.models.fast_cpu import piecewise


def qkv(batch=9, tokens=12, dtype=torch.float32):
    """As a linear layer leaves them: (batch, 3 heads, tokens, 8), views of one tensor."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, tokens, 3, 3, 8, generator=generator).to(dtype)
    return values.permute(2, 0, 3, 1, 4).unbind(0)


@pytest.mark.parametrize("grad", [True, False])
def test_written_out_it_is_softmax_attention(grad, monkeypatch):
    q, k, v = (x.double() for x in qkv(dtype=torch.bfloat16))
    expected = F.scaled_dot_product_attention(q, k, v)
    monkeypatch.setattr(attention, "MULTIPLIES_BFLOAT16", True)
    monkeypatch.setattr(attention, "PIECE", 2 * 12 * 12)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", None)
    sizes = []

    def noted(function, size, *inputs):
        sizes.append(size)
        return piecewise(function, size, *inputs)

    monkeypatch.setattr(attention, "piecewise", noted)
    with torch.set_grad_enabled(grad):
        found = attend(*qkv(dtype=torch.bfloat16))
    assert sizes == [2]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2)


def test_dropped_weights_are_zero_and_the_rest_scaled():
    q, k, _ = qkv()
    identity = torch.eye(12).expand(9, 3, 12, 12)  # as values: what comes out is the weights
    plain = attend(q, k, identity)
    dropping = attend(q, k, identity, p=0.25)
    left = dropping != 0
    assert left.float().mean() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(dropping[left], (plain / 0.75)[left])


def test_gradients_with_dropout_are_autograds():
    q, k, v = (x.double().requires_grad_() for x in qkv(batch=2, tokens=4))

    def seeded(q, k, v):
        torch.manual_seed(0)
        return attend(q, k, v, p=0.25)

    assert torch.autograd.gradcheck(seeded, (q, k, v))


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_drops_its_share_and_keeps_the_mean(p, dtype, monkeypatch):
    monkeypatch.setattr(attention.F, "dropout", None)  # it draws for itself
    found = dropout(torch.ones(1001, 999, dtype=dtype), p)
    assert found.dtype == dtype
    assert (found == 0).double().mean().item() == pytest.approx(p, abs=0.002)  # four standard deviations and more
    assert found.double().mean().item() == pytest.approx(1, abs=0.005)


def test_decisions_are_independent():
    """Neighbours, which share a random word, and calls."""
    first, second = (kept(torch.empty(0), [1000, 1000], 2**15).float() - 0.5 for _ in range(2))
    for other in (second, *(first.roll(shift, dims=1) for shift in (1, 2, 3, 4))):
        assert (first * other).mean().abs() < 4 * 0.25 / 1000


def test_dropout_is_the_seeds():
    x = torch.ones(5, 7)  # no multiple of four
    torch.manual_seed(0)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_or_everything_dropped(p):
    assert torch.equal(dropout(torch.ones(4), p), torch.full((4,), 1 - p))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_calls_draw_anew_and_forget_nothing_backward(backend):
    def twice(x):
        return dropout(x, 0.5) + 4 * dropout(x, 0.5)  # one must not be taken for the other

    x = torch.ones(64, 64, requires_grad=True)
    found = torch.compile(twice, backend=backend, fullgraph=True)(x)
    assert set(found.unique().tolist()) == {0, 2, 8, 10}
    found.sum().backward()
    assert torch.equal(x.grad, found)  # the same decisions backward


def test_attention_is_timms():
    theirs = TimmAttention(24, 3, proj_bias=False).eval()
    ours = Attention(24, 3).eval()
    ours.load_state_dict(theirs.state_dict())
    x, mask = torch.randn(2, 5, 24), torch.rand(5, 5) < 0.7
    mask |= torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x, attn_mask=mask), theirs(x, attn_mask=mask))
    torch.testing.assert_close(ours(x, is_causal=True), theirs(x, is_causal=True))
    ours.fused_attn = False
    torch.testing.assert_close(ours(x), theirs(x))
