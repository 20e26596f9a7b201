import math

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.v2 import functional as TF

from scott_models.data import device
from scott_models.data.colours import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Colours,
    blend,
    change_colours,
    gaussian_blur,
    normalize,
    recolour_batch,
    shift_hue,
    to_gray,
)
from scott_models.data.random_streams import Draws
from scott_models.data.views import EachView, TwoCrops, TwoViews


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(batch, seed=0):
    return Draws.of(generator(seed), batch)


@pytest.fixture
def images():
    return torch.rand(6, 3, 40, 36)


def column(values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_channels_are_normalised_as_timm_does():
    white = normalize(torch.ones(1, 3, 1, 1)).flatten()
    expected = (1 - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(IMAGENET_DEFAULT_STD)
    torch.testing.assert_close(white, expected)


def test_hue_is_torchvisions(images):
    shifts = [-0.1, -0.03, 0.0, 0.02, 0.07, 0.1]
    images[0] = images[0, :1]  # a grey image has no hue
    expected = torch.stack([TF.adjust_hue(image, shift) for image, shift in zip(images, shifts)])
    torch.testing.assert_close(shift_hue(images, column(shifts)), expected, rtol=0, atol=1e-5)


def test_contrast_and_saturation_are_torchvisions(images):
    shares = [0.6, 0.8, 1.0, 1.1, 1.3, 1.4]
    mean = to_gray(images).mean(dim=(-2, -1), keepdim=True)
    for ours, theirs in (
        (blend(images, mean, column(shares)), TF.adjust_contrast),
        (blend(images, to_gray(images), column(shares)), TF.adjust_saturation),
    ):
        expected = torch.stack([theirs(image, share) for image, share in zip(images, shares)])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_blur_is_torchvisions(images):
    sigma = np.array([0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
    expected = torch.stack([TF.gaussian_blur(image, [9, 9], [float(s)]) for image, s in zip(images, sigma)])
    torch.testing.assert_close(gaussian_blur(images, sigma), expected, rtol=0, atol=1e-5)


def one_by_one(image, colours, i):
    """Apply the colour changes of image i with torchvision alone."""

    def jitter(image):
        operations = TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue
        for place in range(4):
            which = colours.jitter_order[:, i].tolist().index(place)
            image = operations[which](image, float(colours.factors[which, i]))
        return image

    operations = (
        (colours.chosen[0, i], jitter),
        (colours.chosen[1, i], lambda x: TF.rgb_to_grayscale(x, num_output_channels=3)),
        (colours.chosen[2, i], lambda x: TF.gaussian_blur(x, [9, 9], [float(colours.sigma[i])])),
    )
    for place in range(3):
        chosen, operation = operations[colours.order[:, i].tolist().index(place)]
        image = operation(image) if chosen else image
    return image


def test_a_batch_gets_what_torchvision_gives_each_image():
    images = torch.rand(64, 3, 20, 24)
    colours = Colours.draw(draws(64))
    expected = torch.stack([one_by_one(image, colours, i) for i, image in enumerate(images)])
    torch.testing.assert_close(colours(images), expected, rtol=0, atol=2e-5)


def test_a_batch_at_once_is_a_call(monkeypatch):
    crops = torch.randint(0, 256, (400, 3, 20, 24), dtype=torch.uint8)
    colours = Colours.draw(draws(400))
    assert all(side.any() for sides in colours.sides for side in sides)  # grey and blurred, before and after
    expected = colours(crops.float() / 255)
    calls = []
    monkeypatch.setattr(
        "scott_models.data.colours.compile_once",
        lambda function: lambda *given: calls.append(given) or function(*given),
    )
    torch.testing.assert_close(colours.at_once(crops), expected, rtol=0, atol=2e-5)
    at_once = torch.compile(recolour_batch, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(at_once(*calls[0]), recolour_batch(*calls[0]), rtol=0, atol=1e-5)


def test_nobody_need_be_blurred(monkeypatch):
    monkeypatch.setattr("scott_models.data.colours.compile_once", lambda function: function)
    crops = torch.randint(0, 256, (4, 3, 20, 24), dtype=torch.uint8)
    colours = Colours.draw(draws(4))
    colours.chosen[2] = False
    torch.testing.assert_close(colours.at_once(crops), colours(crops.float() / 255), rtol=0, atol=2e-5)


def test_tensors_move_together():
    tensors = [
        torch.rand(3, 5),
        torch.zeros(0, 9),
        torch.arange(7),
        torch.tensor([True, False]),
        torch.rand(2).double(),
    ]
    for moved, tensor in zip(device.copy_together(tensors, torch.device("cpu")), tensors, strict=True):
        assert moved.dtype == tensor.dtype
        assert torch.equal(moved, tensor)


def test_a_batch_in_pieces_is_the_same_batch(monkeypatch):
    crops = torch.randint(0, 256, (13, 3, 20, 24), dtype=torch.uint8)
    in_pieces = TwoViews()(crops, generator())
    monkeypatch.setattr("scott_models.data.colours.PIECE", 13)
    for piecewise, whole in zip(in_pieces, TwoViews()(crops, generator())):
        torch.testing.assert_close(piecewise, whole, rtol=0, atol=1e-5)


def test_a_view_does_not_depend_on_its_batch(images):
    def keyed(indices):
        return Draws.keyed(np.uint64(1), torch.zeros(len(indices), dtype=torch.long), torch.tensor(indices))

    crops = (255 * images).byte()
    together = TwoViews()(crops, keyed([0, 1, 2, 3, 4, 5]))
    apart = [TwoViews()(crops[part], keyed(part)) for part in ([0, 1], [2, 3, 4, 5])]
    for whole, *parts in zip(together, *apart):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


def test_how_often_a_view_changes(images):
    """Compare with the probabilities 1 - 0.6 (1 - 0.2 * 0.9 * 0.7) of no change, and 0.6 * 0.1 of a grey image."""
    many = images[:1, :, :8, :8].expand(4000, -1, -1, -1)
    views = Colours.draw(draws(4000))(many)
    same = (views == many).flatten(1).all(dim=1).float().mean().item()
    grey = (views[:, :1] - views).abs().amax(dim=(1, 2, 3)).lt(1e-6).float().mean().item()
    assert same == pytest.approx(1 - 0.6 * (1 - 0.2 * 0.9 * 0.7), abs=0.03)
    assert grey == pytest.approx(0.06, abs=0.015)


def test_strengths_and_orders_are_drawn_evenly():
    colours = Colours.draw(draws(4000))
    bounds = (0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), (0.1, 2.0)
    values_of = map(torch.from_numpy, (*colours.factors, colours.sigma))
    for values, (low, high) in zip(values_of, bounds, strict=True):
        share = (values - low) / (high - low)
        assert share.min() >= 0
        assert share.max() <= 1
        assert torch.histc(share.float(), bins=4, min=0, max=1).min() > 900
    for order in map(torch.from_numpy, (colours.order, colours.jitter_order)):
        assert torch.equal(order.sort(dim=0).values, torch.arange(len(order))[:, None].expand_as(order))
        kinds = torch.unique(order, dim=1, return_counts=True)[1]
        assert len(kinds) == math.factorial(len(order))
        assert kinds.min() > 0.7 * 4000 / len(kinds)


def test_views(photos):
    crops = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    context, target = TwoViews("none")(crops, generator())
    assert torch.equal(context, target)
    restored = context * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    torch.testing.assert_close(restored * 255, crops.float(), rtol=0, atol=1e-3)
    plain = context
    context, target = TwoViews("same")(crops, generator())
    assert torch.equal(context, target)
    assert not torch.equal(context, plain)
    context, target = TwoViews()(crops, generator())
    assert not torch.equal(context, target)
    assert context.isfinite().all()
    for make in (TwoViews, lambda mode: EachView(2, mode)):
        with pytest.raises(ValueError, match="got 'other'"):
            make("other")


def test_a_compiler_that_fails_is_done_without(monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no ptxas\nand more")

    def double(x):
        return 2 * x

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    call = device.compile_once(double)
    assert [call(torch.tensor(3)).item() for _ in range(2)] == [6, 6]
    assert capsys.readouterr().err.count("double: torch.compile failed (RuntimeError: no ptxas and more)") == 1


@pytest.mark.parametrize("mode", ["different", "same", "none"])
def test_each_view_has_its_colours(mode):
    views = EachView(3, mode)
    crops = [torch.randint(0, 256, (16, 3, size, size), dtype=torch.uint8) for size in (32, 32, 16)]
    drawn = views.draw(Draws(np.arange(16, dtype=np.uint64)))
    assert len(drawn) == {"different": 3, "same": 1, "none": 0}[mode]
    found = views(crops, drawn)
    assert [image.shape for image in found] == [crop.shape for crop in crops]
    for crop, image, colours in zip(crops, found, drawn if mode == "different" else 3 * drawn):
        assert torch.equal(image, change_colours(crop, colours))
    if mode == "none":
        assert torch.equal(found[2], normalize(crops[2].float() / 255))
    again = views(crops, Draws(np.arange(16, dtype=np.uint64)))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    with pytest.raises(ValueError, match="crops.*3 of each.*got 1"):
        views(crops[0], drawn)


@pytest.mark.parametrize("mode", ["different", "same", "none"])
def test_two_views_of_a_crop_and_one_of_another(mode):
    views, pair = TwoCrops(TwoViews(mode)), TwoViews(mode)
    crops = [torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8) for _ in range(2)]
    streams = [Draws(np.arange(16, dtype=np.uint64)) for _ in range(3)]
    context, target, other = views(crops, views.draw(streams[0]))
    first = pair(crops[0], pair.draw(streams[1]))  # the same as without the other crop
    assert torch.equal(context, first[0])
    assert torch.equal(target, first[1])
    expected = (
        change_colours(crops[1], Colours.draw(streams[1])) if mode != "none" else normalize(crops[1].float() / 255)
    )
    assert torch.equal(other, expected)
    assert all(torch.equal(a, b) for a, b in zip((context, target, other), views(crops, streams[2]), strict=True))
