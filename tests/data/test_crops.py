import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from scott_models.data import crops
from scott_models.data.decoded import Images
from scott_models.data.random_streams import Draws


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(batch, seed=0):
    return Draws.of(generator(seed), batch)


def test_crops_are_torchvisions():
    images = [torch.randint(0, 256, (3, 40 + i, 60 - i), dtype=torch.uint8) for i in range(8)]
    boxes = crops.draw_crop_boxes(torch.tensor([image.shape[-2:] for image in images]), draws(8))
    found = crops.make_resized_crops(images, boxes, 32, TF.InterpolationMode.BICUBIC)
    for image, box, crop in zip(images, boxes.tolist(), found):
        top, left, height, width = box
        cut = image[:, top : top + height, left : left + width]
        assert torch.equal(crop, TF.resize(cut, [32, 32], interpolation=TF.InterpolationMode.BICUBIC, antialias=True))


def test_centre_crops_are_the_evaluation_transform():
    """Check that cropping before resizing gives the picture of resizing before cropping, but for rounded borders."""
    picture = TF.resize(torch.randint(0, 256, (3, 8, 10), dtype=torch.uint8), [96, 120])
    crop = crops.make_centre_crops([picture], 56)[0]
    expected = TF.center_crop(TF.resize(picture, [64]), [56, 56])
    assert (crop.float() - expected.float()).abs().mean() < 1


def test_crop_boxes_are_distributed_like_torchvisions():
    count, size = 4000, (300, 420)
    boxes = crops.draw_crop_boxes(torch.tensor([size]).expand(count, 2), draws(count)).double()
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    canvas = torch.zeros(3, *size)
    params = [theirs.make_params([canvas]) for _ in range(count)]
    expected = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params]).double()
    error = 4 * math.sqrt(2 / count)  # in standard deviations: four standard errors of a difference of means
    assert ((boxes.mean(dim=0) - expected.mean(dim=0)).abs() < error * expected.std(dim=0)).all()
    assert ((boxes.std(dim=0) / expected.std(dim=0) - 1).abs() < 0.06).all()


@pytest.mark.parametrize("size", [(16, 400), (400, 16), (17, 16)])
def test_crop_boxes_stay_inside(size):
    top, left, height, width = crops.draw_crop_boxes(torch.tensor([size]).expand(500, 2), draws(500)).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()  # noqa: PT018
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def test_crops_are_upright_or_mirrored():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    slopes = crops.make_random_crops([ramp] * 400, 32, generator())
    assert slopes.shape == (400, 3, 32, 32)
    assert slopes.dtype == torch.uint8
    assert torch.equal(slopes, crops.make_random_crops([ramp] * 400, 32, generator()))
    rising = (slopes[..., -1] > slopes[..., 0]).all(dim=(1, 2))
    assert 0.4 < rising.float().mean() < 0.6
    assert (rising | (slopes[..., -1] < slopes[..., 0]).all(dim=(1, 2))).all()


def stored(*sizes):
    """Return images of smooth noise in one flat buffer, stored as decoded images are."""
    pictures = [TF.resize(torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8), list(size)) for size in sizes]
    flat = torch.cat([picture.permute(1, 2, 0).flatten() for picture in pictures])
    lengths = np.array([picture.numel() for picture in pictures])
    return Images([None] * len(sizes), 0, "", np.zeros(len(sizes)), np.array(sizes), lengths.cumsum() - lengths, flat)


SHAPES = (60, 60), (60, 75), (90, 60), (61, 64), (60, 200), (200, 60)
INDICES = [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0] * 4


def distance(found, images, size):
    """Return the largest and the mean difference to torchvision's crops, of 255."""
    expected = crops.make_random_crops([images[i] for i in INDICES], size, draws(48))
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    off = (found.int() - expected.int()).abs()
    return off.max().item(), off.float().mean().item()


@pytest.mark.parametrize("size", [16, 48, 112])  # much smaller than the box, a little smaller, and larger
def test_crops_on_a_device_are_those_of_torchvision(size, monkeypatch):
    monkeypatch.setattr(crops, "AT_ONCE", 5)
    images = stored(*SHAPES)
    most, mean = distance(crops.make_random_crops_on_device(images, INDICES, size, draws(48)), images, size)
    assert most <= 2
    assert mean < 0.3


def boxed(images, size, number=0, **settings):
    """Cut a batch as a run does: every box at the size of the data set's largest box."""
    table = crops.make_crop_table(images.sizes[INDICES], images.offsets[INDICES], draws(48, number))
    return crops.cut_boxes(images.pixels, table, crops.find_largest_box(images.sizes), size, **settings)


@pytest.mark.parametrize("size", [16, 48, 112])
def test_half_precision_is_enough(size):
    images = stored(*SHAPES)
    most, mean = distance(boxed(images, size, dtype=torch.float16), images, size)
    assert most <= 2
    assert mean < 0.35


def test_one_compiled_function_serves_all_batches(monkeypatch):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph

    compiled = torch.compile(crops.cut_and_resize, backend=backend, fullgraph=True)
    monkeypatch.setattr(crops, "compile_once", lambda function: compiled)
    images = stored(*SHAPES)
    for number in range(5):
        assert torch.equal(boxed(images, 48, number, compiled=True), boxed(images, 48, number))
    assert len(compilations) == 1


@pytest.mark.parametrize("size", [(60, 60), (60, 75), (90, 60), (60, 400), (400, 60), (17, 16)])
def test_no_box_is_larger_than_the_largest(size):
    boxes = crops.draw_crop_boxes(torch.tensor([size]).expand(2000, 2), draws(2000))
    highest, widest = crops.find_largest_box(np.array([size]))
    assert boxes[:, 2].max() <= highest <= boxes[:, 2].max() + 16
    assert boxes[:, 3].max() <= widest <= boxes[:, 3].max() + 16
    assert highest % 8 == widest % 8 == 0


def test_images_beyond_what_32_bits_count():
    """Check that the start of an image in the buffer is kept in 64 bits."""
    table = crops.make_crop_table(np.array([[60, 60]]), np.array([3 * 2**33]), draws(1))
    assert table.dtype == np.int64
    assert table[0, 5] == 2**33


def test_resampling_keeps_the_mean_and_ignores_what_lies_beyond():
    weights = crops.make_resampling(torch.tensor([[30], [50]]), 50, 20)
    assert weights.shape == (2, 20, 50)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 20))
    assert (weights[0, :, 30:] == 0).all()
    mirrored = crops.make_resampling(torch.tensor([[30], [50]]), 50, 20, torch.tensor([[True], [False]]))
    assert torch.equal(mirrored[0], weights[0].flip(0))
    assert torch.equal(mirrored[1], weights[1])


def test_local_views_are_small_parts():
    sizes = torch.tensor([[100, 100]]).expand(500, 2)
    boxes = crops.draw_crop_boxes(sizes, draws(500), crops.LOCAL_AREA)
    share = boxes[:, 2:].prod(dim=1) / 100**2
    low, high = crops.LOCAL_AREA
    assert share.min() == pytest.approx(low, abs=0.01)
    assert share.max() == pytest.approx(high, abs=0.01)
