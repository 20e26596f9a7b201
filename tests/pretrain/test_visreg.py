import numpy as np
import pytest
import torch

from scott_models import SCOTT
from scott_models.data.random_streams import Draws
from scott_models.pretrain.pooled import infonce, regularise
from scott_models.pretrain.visreg import Comparison, PooledEncoder, VISReg


def comparison(term="visreg", **settings):
    return Comparison(term, 32, (16, 8), **{"views": 2, "weight": 0.5, "temperature": 0.2, **settings})


@pytest.fixture
def encoder():
    return SCOTT(img_size=64, embed_dim=32, depth=1, num_heads=2, dynamic_img_size=True)


def crops(batch=6, sizes=(64, 64, 32)):
    return [torch.randint(256, (batch, 3, size, size), dtype=torch.uint8) for size in sizes]


def draws(batch=6):
    return Draws(np.arange(batch, dtype=np.uint64))


@pytest.mark.parametrize("term", ["visreg", "sigreg", "vicreg", "infonce"])
def test_from_crops_to_gradients(encoder, term):
    objective = VISReg(encoder, comparison(term), local_views=1).train()
    inputs = objective.inputs(crops(), draws())
    assert [image.shape[-1] for image in inputs[:3]] == [64, 64, 32]
    assert len(inputs) == 3 + (term in ("visreg", "sigreg"))
    planned = objective.inputs(crops_again := crops(), objective.drawing(draws()))
    assert all(torch.equal(a, b) for a, b in zip(planned, objective.inputs(crops_again, draws()), strict=True))
    objective(*inputs).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())
    assert objective.encoders["target"] is encoder
    assert {name for name, _ in objective.named_children()} == {"student", "comparison"}


def test_each_crop_is_pooled_by_itself(encoder):
    images = [torch.randn(2, 3, size, size) for size in (64, 64, 32)]
    features = PooledEncoder(encoder)(*images)
    assert features.shape == (2, 3, 32)
    for view, image in enumerate(images):
        torch.testing.assert_close(features[:, view], encoder.forward_features(image).mean(dim=1))


def test_the_loss_by_hand():
    made, features, directions = comparison(), torch.randn(5, 3, 32), torch.eye(8)
    projected = made.projector(features.transpose(0, 1).reshape(15, 32)).view(3, 5, 8)
    centre = (projected[0] + projected[1]) / 2  # mean of the large crops
    distance = sum((each - centre).square().mean() for each in projected) / 3
    spread = sum(regularise("visreg", each, directions) for each in projected) / 3
    torch.testing.assert_close(made(features, directions), distance + 0.5 * spread)


def test_infonce_pairs_every_large_crop_with_every_other():
    made, features = comparison("infonce"), torch.randn(5, 3, 32)
    a, b, small = made.projector(features.transpose(0, 1).reshape(15, 32)).view(3, 5, 8)
    expected = (infonce(a, b, 0.2) + infonce(a, small, 0.2) + infonce(b, small, 0.2)) / 3
    torch.testing.assert_close(made(features), expected)


def test_compared_in_fp32_under_autocast():
    made, features = comparison(), torch.randn(5, 2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(features, torch.eye(8))
    assert torch.equal(found, made(features, torch.eye(8)))


def test_crops_agree_and_images_do_not_collapse(encoder):
    """Train on the same crops: their distance must fall while features of different images stay apart."""
    objective = VISReg(encoder, comparison(weight=1.0)).train()
    colours = torch.randint(256, (8, 3, 1, 1))
    pictures = [(colours + torch.randint(-20, 20, (8, 3, 64, 64))).clamp(0, 255).byte() for _ in range(2)]
    inputs = objective.inputs(pictures, draws(8))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(*inputs)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    features = objective.student(*inputs[:2])
    apart = (features[:, 0] - features[:, 0].mean(dim=0)).square().mean()
    assert (features[:, 0] - features[:, 1]).square().mean() < 0.5 * apart


def test_another_size(encoder):
    objective = VISReg(encoder, comparison(), local_views=1)
    objective.set_input_size(32)
    inputs = objective.inputs(crops(sizes=(32, 32, 16)), draws())
    assert objective(*inputs).isfinite()
