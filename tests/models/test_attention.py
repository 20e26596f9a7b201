import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as TimmAttention

from scott_models.models import fast_cpu
from scott_models.models.attention import Attention, attend


def qkv(batch=9, tokens=12, dtype=torch.float32):
    """As a linear layer leaves them: (batch, 3 heads, tokens, 8), views of one tensor."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, tokens, 3, 3, 8, generator=generator).to(dtype)
    return values.permute(2, 0, 3, 1, 4).unbind(0)


@pytest.mark.parametrize("grad", [True, False])
def test_written_out_it_is_softmax_attention(grad, monkeypatch):
    q, k, v = (x.double() for x in qkv(dtype=torch.bfloat16))
    expected = F.scaled_dot_product_attention(q, k, v)
    monkeypatch.setattr(fast_cpu, "MULTIPLIES_BFLOAT16", True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    with torch.set_grad_enabled(grad):
        found = attend(*qkv(dtype=torch.bfloat16))
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
