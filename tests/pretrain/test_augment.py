import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from scott_models.data import decode, find_images
from scott_models.pretrain import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(6, 3, 40, 36)


def column(values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_hue_is_torchvisions(images):
    shifts = [-0.1, -0.03, 0.0, 0.02, 0.07, 0.1]
    images[0] = images[0, :1]  # a grey image has no hue
    expected = torch.stack([TF.adjust_hue(image, shift) for image, shift in zip(images, shifts)])
    torch.testing.assert_close(augment.shift_hue(images, column(shifts)), expected, rtol=0, atol=1e-5)


def test_contrast_and_saturation_are_torchvisions(images):
    shares = [0.6, 0.8, 1.0, 1.1, 1.3, 1.4]
    mean = augment.gray(images).mean(dim=(-2, -1), keepdim=True)
    for ours, theirs in (
        (augment.blend(images, mean, column(shares)), TF.adjust_contrast),
        (augment.blend(images, augment.gray(images), column(shares)), TF.adjust_saturation),
    ):
        expected = torch.stack([theirs(image, share) for image, share in zip(images, shares)])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_blur_is_torchvisions(images):
    blur = augment.GaussianBlur(6, generator())
    assert ((blur.sigma >= 0.1) & (blur.sigma <= 2)).all()
    chosen = torch.tensor([4, 1, 5])
    expected = torch.stack([TF.gaussian_blur(images[i], [9, 9], [float(blur.sigma[i])]) for i in chosen])
    torch.testing.assert_close(blur(images[chosen], chosen), expected, rtol=0, atol=1e-5)


def test_crop_boxes_are_distributed_like_torchvisions():
    draws, size = 4000, (300, 420)
    boxes = augment.crop_boxes(torch.tensor([size]).expand(draws, 2), generator()).double()
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    canvas = torch.zeros(3, *size)
    params = [theirs.make_params([canvas]) for _ in range(draws)]
    expected = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params]).double()
    error = 4 * math.sqrt(2 / draws)  # in spreads: four standard errors of a difference of means
    assert ((boxes.mean(dim=0) - expected.mean(dim=0)).abs() < error * expected.std(dim=0)).all()
    assert ((boxes.std(dim=0) / expected.std(dim=0) - 1).abs() < 0.06).all()


@pytest.mark.parametrize("size", [(16, 400), (400, 16), (17, 16)])
def test_crop_boxes_stay_inside(size):
    top, left, height, width = augment.crop_boxes(torch.tensor([size]).expand(500, 2), generator()).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()  # noqa: PT018
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def test_crops_are_upright_or_mirrored(photos):
    images = decode(find_images([photos]), 64)
    crops = augment.random_crops(images, torch.arange(12), 32, generator())
    assert crops.shape == (12, 3, 32, 32)
    assert crops.dtype == torch.uint8
    assert torch.equal(crops, augment.random_crops(images, torch.arange(12), 32, generator()))
    ramp = torch.arange(64, dtype=torch.uint8).expand(64, 64)[..., None].expand(64, 64, 3)
    images.pixels[: 64 * 64 * 3] = ramp.reshape(-1)
    images.sizes[0] = torch.tensor([64, 64])
    slopes = augment.random_crops(images, torch.zeros(400, dtype=torch.long), 32, generator()).float()
    rising = (slopes[..., -1] > slopes[..., 0]).all(dim=(1, 2))
    assert 0.4 < rising.float().mean() < 0.6
    assert (rising | (slopes[..., -1] < slopes[..., 0]).all(dim=(1, 2))).all()


def test_how_often_a_view_changes(images):
    """A view stays as it is with P = 1 - 0.6 (1 - 0.2 * 0.9 * 0.7), and is grey with 0.6 * 0.1."""
    many = images[:1, :, :8, :8].expand(4000, -1, -1, -1)
    views = augment.colour_view(many, generator())
    same = (views == many).flatten(1).all(dim=1).float().mean().item()
    gray = (views[:, :1] - views).abs().amax(dim=(1, 2, 3)).lt(1e-6).float().mean().item()
    assert same == pytest.approx(1 - 0.6 * (1 - 0.2 * 0.9 * 0.7), abs=0.03)
    assert gray == pytest.approx(0.06, abs=0.015)


def test_each_image_has_its_own_strengths():
    jitter = augment.ColourJitter(2000, generator())
    for values, strength in ((jitter.brightness, 0.4), (jitter.contrast, 0.4), (jitter.saturation, 0.2)):
        assert values.min() == pytest.approx(1 - strength, abs=0.01)
        assert values.max() == pytest.approx(1 + strength, abs=0.01)
    assert jitter.hue.abs().max() == pytest.approx(0.1, abs=0.01)


def test_orders_take_turns(images):
    """x + 1 then x * 2 differs from x * 2 then x + 1, and both happen."""
    many = torch.ones(400, 1, 1, 1)
    everyone = torch.ones(400, dtype=torch.bool)
    results = augment.in_random_order(
        many, [(everyone, lambda x, i: x + 1), (everyone, lambda x, i: x * 2)], generator()
    )
    assert set(results.flatten().tolist()) == {3.0, 4.0}
    assert 0.4 < (results == 3).float().mean() < 0.6
    assert (many == 1).all()


def test_views(photos):
    crops = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    context, target = augment.two_views(crops, generator(), mode="none")
    assert torch.equal(context, target)
    restored = context * torch.tensor(augment.IMAGENET_STD).view(3, 1, 1) + torch.tensor(augment.IMAGENET_MEAN).view(
        3, 1, 1
    )
    torch.testing.assert_close(restored * 255, crops.float(), rtol=0, atol=1e-3)
    plain = context
    context, target = augment.two_views(crops, generator(), mode="same")
    assert torch.equal(context, target)
    assert not torch.equal(context, plain)
    context, target = augment.two_views(crops, generator())
    assert not torch.equal(context, target)
    assert np.isfinite(context.numpy()).all()
    with pytest.raises(ValueError, match="got 'other'"):
        augment.two_views(crops, generator(), mode="other")
