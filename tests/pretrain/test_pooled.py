import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scott_models.data.random_streams import Draws
from scott_models.pretrain.pooled import (
    Pooled,
    build_projector,
    compute_normal_quantiles,
    draw_directions,
    infonce,
    sigreg,
    vicreg,
    visreg,
)


def directions(width, count=64, seed=0):
    return torch.from_numpy(draw_directions(Draws(np.array([seed], dtype=np.uint64)), width, count)[0])


def test_a_projector_goes_through_its_widths():
    layers = build_projector(8, [16, 12, 4])
    assert [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)] == [
        (16, 8),
        (12, 16),
        (4, 12),
    ]
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [layer.bias is not None for layer in layers if isinstance(layer, nn.Linear)] == [False, False, True]


def test_directions_have_length_1_and_belong_to_an_update():
    where = torch.zeros(3, dtype=torch.long), torch.arange(3)
    first, again, other = (
        draw_directions(Draws.keyed(np.uint64(1), where[0], images, update), 16, 8)[0]
        for images, update in ((where[1], 4), (where[1] + 9, 4), (where[1], 5))
    )
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), 1, rtol=1e-6)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)  # the images do not matter
    assert (first != other).all()
    many = directions(2, 10_000)
    assert many.mean(dim=1).abs().max() < 0.02  # all directions are equally likely


def test_visreg_is_least_for_a_normal_distribution():
    normal = torch.randn(4096, 8, dtype=torch.float64)
    found = visreg(normal, directions(8).double())
    assert found < 5e-3
    for worse in (normal + 1, 0.5 * normal, normal.sign(), normal[:, :1].expand(-1, 8)):
        assert visreg(worse, directions(8).double()) > 5 * found


def test_sigreg_is_least_for_a_normal_distribution():
    torch.manual_seed(1)
    normal = torch.randn(4096, 8)
    found = sigreg(normal, directions(8))
    assert found < 1.5  # for normal samples it does not grow with their number
    for worse in (normal + 1, 0.5 * normal, normal.sign(), normal[:, :1].expand(-1, 8)):
        assert sigreg(worse, directions(8)) > 5 * found


def test_sigreg_by_hand():
    features, frequencies = [0.5, -1.0], [-5 + 0.625 * k for k in range(17)]
    heights = []
    for t in frequencies:
        real, imaginary = (sum(f(t * x) for x in features) / 2 for f in (math.cos, math.sin))
        normal = math.exp(-(t**2) / 2)
        heights.append(((real - normal) ** 2 + imaginary**2) * normal)
    expected = 2 * 0.625 * (sum(heights) - (heights[0] + heights[-1]) / 2)
    found = sigreg(torch.tensor(features)[:, None], torch.ones(1, 1))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_visreg_by_hand():
    features = torch.tensor([[1.0], [-1.0], [3.0]])
    deviation = math.sqrt(8 / 3 + 1e-4)
    projected = torch.tensor([-2.0, 0.0, 2.0]) / deviation
    quantiles = torch.tensor([-0.9674216, 0.0, 0.9674216])
    expected = 1 + (1 - deviation) ** 2 + (projected - quantiles).square().mean()
    torch.testing.assert_close(compute_normal_quantiles(3, torch.device("cpu")), quantiles)
    torch.testing.assert_close(visreg(features, torch.ones(1, 1)), expected)


@pytest.mark.parametrize("term", [lambda x: visreg(x, directions(8)), vicreg], ids=["visreg", "vicreg"])
def test_gradients_do_not_vanish_where_all_images_are_one(term):
    features = (0.02 * torch.randn(64, 8)).requires_grad_()
    term(features).backward()
    assert 64 * features.grad.abs().mean() > 0.05  # per image; terms on cosines have hardly any gradient there
    assert features.grad.isfinite().all()


def test_vicreg_by_hand():
    spread = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # variances and covariance 2
    torch.testing.assert_close(vicreg(spread), torch.tensor((4 + 4) / 25 / 2))
    small = torch.tensor([[0.1, 0.0], [-0.1, 0.0]])
    expected = ((1 - math.sqrt(0.02 + 1e-4)) + (1 - math.sqrt(1e-4))) / 2
    torch.testing.assert_close(vicreg(small), torch.tensor(expected))


def test_infonce_by_hand():
    ours, theirs = torch.randn(3, 4), torch.randn(3, 4)
    cosines = F.cosine_similarity(ours[:, None], theirs[None], dim=2) / 0.5
    there, back = -cosines.log_softmax(dim=1).diag().mean(), -cosines.log_softmax(dim=0).diag().mean()
    torch.testing.assert_close(infonce(ours, theirs, 0.5), (there + back) / 2)


@pytest.mark.parametrize("term", ["visreg", "sigreg", "vicreg", "infonce"])
def test_a_term_is_of_fp32_under_autocast(term):
    pooled = Pooled(term, 16, (8, 4), weight=2.0)
    features = torch.randn(6, 16), torch.randn(6, 16)
    drawn = [torch.from_numpy(array) for array in pooled.drawing(Draws(np.arange(6, dtype=np.uint64)))]
    plain = pooled(*features, *drawn)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pooled(*features, *drawn), plain)
    pooled.weight = 1.0
    torch.testing.assert_close(pooled(*features, *drawn), plain / 2)
    assert (pooled.target is None) == (term != "infonce")
    assert not list(pooled.buffers())


def test_unknown_terms_are_refused():
    with pytest.raises(ValueError, match="expected one of .*'visreg'.*, got 'dino'"):
        Pooled("dino", 16, (8, 4))
