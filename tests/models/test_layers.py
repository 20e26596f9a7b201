import math

import pytest
import torch

from scott_models.models.layers import Block, draw_normal, sincos_2d


def test_positions_are_sines_of_row_then_column():
    positions = sincos_2d((3, 5), 16)
    assert positions.shape == (15, 16)
    assert positions.dtype == torch.float32
    y, x, w = 2, 4, 10000 ** (-1 / 4)  # the second of four frequencies
    expected = [math.sin(y * w), math.cos(y * w), math.sin(x * w), math.cos(x * w)]
    torch.testing.assert_close(positions[y * 5 + x, 1::4], torch.tensor(expected))


@pytest.mark.parametrize("dim", [30, 33, 34])
def test_positions_need_a_width_of_four(dim):
    assert sincos_2d((2, 2), 36).shape == (4, 36)
    with pytest.raises(ValueError, match=f"multiple of 4.*got {dim}"):
        sincos_2d((2, 2), dim)


def test_fresh_weights_are_near():
    """As torch draws them; torch 2.7 to 2.9 draw infinity among the numbers of this seed, and make it 2."""
    torch.manual_seed(3)
    drawn = torch.nn.init.trunc_normal_(torch.empty(2**21), std=0.02)
    torch.manual_seed(3)
    draw_normal(weight := torch.empty(2**21), 0.02)
    assert torch.equal(weight, drawn.clamp(-7 * 0.02, 7 * 0.02))
    assert weight.std() == pytest.approx(0.02, rel=0.01)


def test_block_adds_the_mlp_to_the_normalised_input():
    block = Block(32, 2).eval()
    x = torch.randn(2, 5, 32)
    attended = torch.nn.functional.layer_norm(x + block.attn(block.norm(x)), (32,))
    torch.testing.assert_close(block(x), attended + block.mlp(attended))
    pre_norm = x + block.attn(block.norm(x))
    assert not torch.allclose(block(x), pre_norm + block.mlp(block.norm(pre_norm)), atol=1e-3)


@pytest.mark.parametrize(("dim", "hidden"), [(384, 1024), (96, 256), (192, 512)])
def test_mlp_width(dim, hidden):
    assert Block(dim, 2).mlp.fc2.in_features == hidden


def test_dropout_follows_the_attention_projection_only():
    block = Block(32, 2, proj_drop=0.5)
    assert block.attn.proj_drop.p == 0.5
    assert all(drop.p == 0 for drop in (block.attn.attn_drop, block.mlp.drop1, block.mlp.drop2))


def test_attention_map_is_what_attention_uses():
    block = Block(32, 2).eval()
    x = torch.randn(2, 5, 32)
    weights = block.attention_map(x)
    assert weights.shape == (2, 2, 5, 5)
    value = block.attn.qkv(block.norm(x)).reshape(2, 5, 3, 2, 16)[:, :, 2].transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attn.proj(mixed), block.attn(block.norm(x)))
