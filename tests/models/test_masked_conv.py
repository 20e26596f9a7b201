import pytest
import torch
import torch.nn.functional as F

from scott_models.models import MaskedConv2d


@pytest.fixture
def conv():
    return MaskedConv2d(3, 5, kernel_size=7, stride=2, padding=3)


def test_without_a_mask_it_is_torchs(conv):
    x = torch.randn(2, 3, 32, 48)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, stride=2, padding=3))


def test_it_is_a_submanifold_sparse_convolution(conv):
    """Each visible output cell is the sum over visible inputs alone, plus the bias; hidden cells are zero."""
    x, visible = torch.randn(2, 3, 32, 48), torch.rand(2, 1, 4, 6) < 0.5
    seen = visible.repeat_interleave(8, 2).repeat_interleave(8, 3)
    padded = F.pad((x * seen).double(), (3, 3, 3, 3))
    found = conv(x, visible)
    assert found.shape == (2, 5, 16, 24)
    for image, row, column in ((0, 0, 0), (1, 7, 9), (0, 15, 23)):
        window = padded[image, :, 2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
        expected = (conv.weight.double() * window).sum(dim=(1, 2, 3)) + conv.bias
        expected *= visible[image, 0, row // 4, column // 4]
        torch.testing.assert_close(found[image, :, row, column], expected.float())


def test_nothing_hidden_leaks_not_even_nan(conv):
    x, visible = torch.randn(2, 3, 32, 32), torch.rand(2, 1, 4, 4) < 0.5
    hidden = ~visible.repeat_interleave(8, 2).repeat_interleave(8, 3)
    spoiled = x.masked_fill(hidden, float("nan"))
    assert torch.equal(conv(spoiled, visible), conv(x, visible))


def test_it_scripts_exports_and_has_torchs_weights(conv):
    x, visible = torch.randn(2, 3, 32, 32), torch.rand(2, 1, 4, 4) < 0.5
    assert conv.state_dict().keys() == torch.nn.Conv2d(3, 5, 7).state_dict().keys()
    for other in (torch.jit.script(conv), torch.export.export(conv, (x, visible)).module()):
        torch.testing.assert_close(other(x, visible), conv(x, visible))
