import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scott_models.models.attentive_pool import AttentivePool


def test_it_is_cross_attention_of_one_query():
    pool = AttentivePool(32).eval()
    for parameter in pool.parameters():
        nn.init.normal_(parameter, std=0.3)
    features = torch.randn(3, 10, 32)
    x = pool.norm1(features)
    k, v = F.linear(x, pool.kv.weight).chunk(2, dim=-1)
    q = pool.q(pool.query).expand(3, 1, 32)
    split = [t.unflatten(-1, (4, 8)).transpose(1, 2) for t in (q, k, v)]
    attended = nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    x = pool.norm2(pool.query + pool.proj(attended))
    expected = pool.norm3(x + pool.mlp(x))[:, 0]
    torch.testing.assert_close(pool(features), expected, atol=1e-5, rtol=1e-5)


def test_parameters_are_the_papers():
    """1,811,430 with a linear layer of 102 classes on top (Appendix E.1 and the released code)."""
    head = nn.Sequential(AttentivePool(384), nn.Linear(384, 102))
    assert sum(p.numel() for p in head.parameters()) == 1_811_430


def test_initial_weights():
    pool = AttentivePool(384)
    for weight in (pool.query, pool.q.weight, pool.kv.weight, pool.proj.weight, pool.mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_dropout_in_training_alone():
    pool, features = AttentivePool(32), torch.randn(2, 10, 32)
    assert not torch.equal(pool(features), pool(features))
    pool.eval()
    assert torch.equal(pool(features), pool(features))


def test_width_must_suit_the_heads():
    with pytest.raises(ValueError, match="multiple of 4.*attentive pool.*got 30"):
        AttentivePool(30)
