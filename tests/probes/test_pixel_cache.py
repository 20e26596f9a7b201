import numpy as np
import pytest
import timm
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from scott_models.data.colours import normalize
from scott_models.data.crops import make_random_crops, make_random_crops_on_device
from scott_models.data.files import find_images
from scott_models.data.images import load_image
from scott_models.data.random_streams import Draws, make_key
from scott_models.probes import pixel_cache as module
from scott_models.probes.features import load_evaluation_batches, resolve_transform_config, scale
from scott_models.probes.pixel_cache import PixelCache

CPU = torch.device("cpu")


@pytest.fixture
def pictures(photos):
    return PixelCache(find_images([photos]))


@pytest.fixture
def read(monkeypatch):
    """List the images that were read, in the order of reading."""
    paths = []
    monkeypatch.setattr(module, "load_image", lambda path: (paths.append(path), load_image(path))[1])
    return paths


def config_of(name, size):
    return resolve_transform_config(timm.create_model(name, num_classes=0), size)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "efficientnet_b0"])
def test_crops_are_the_evaluation_transforms_own(name, pictures):
    """Compare byte by byte, both new crops and kept ones."""
    model = timm.create_model(name, num_classes=0)
    config = resolve_transform_config(model, 64)
    expected = torch.cat(list(load_evaluation_batches(model, pictures.images, 64, 5, "x")))
    for _ in range(2):
        crops = torch.cat(list(pictures.crops(config, 5, CPU, "x")))
        assert crops.dtype == torch.uint8
        assert torch.equal(normalize(scale(crops), config["mean"], config["std"]), expected)


def test_crops_are_made_once_for_models_of_one_transform(pictures, read):
    ours, other_colours = config_of("scott_3_16", 32), {**config_of("scott_3_16", 32), "mean": (0.5, 0.5, 0.5)}
    for config in (ours, ours, other_colours):
        list(pictures.crops(config, 5, CPU, "x"))
    assert len(read) == 12
    for other in ({"interpolation": "bicubic"}, {"crop_pct": 1.0}, {"input_size": (3, 48, 48)}):
        list(pictures.crops({**ours, **other}, 5, CPU, "x"))
    assert len(read) == 48


def test_borders_are_of_the_models_mean(pictures):
    config = {**config_of("scott_3_16", 32), "crop_mode": "border"}
    black = {**config, "mean": (0.0, 0.0, 0.0)}
    found = [torch.cat(list(pictures.crops(each, 5, CPU, "x"))) for each in (config, black)]
    assert not torch.equal(*found)


def test_crops_beyond_the_limit_or_half_made_are_not_kept(pictures, read, monkeypatch):
    config = config_of("scott_3_16", 32)
    next(pictures.crops(config, 5, CPU, "x"))
    assert len(list(pictures.crops(config, 5, CPU, "x"))) == 3
    assert len(set(read)) == 12
    monkeypatch.setattr(module, "choose_place", lambda size, device: None)
    limited = PixelCache(pictures.images)
    read.clear()
    for _ in range(2):
        assert len(torch.cat(list(limited.crops(config, 5, CPU, "x")))) == 12
    assert len(read) == 24


def test_other_transforms_keep_no_bytes(pictures, monkeypatch):
    monkeypatch.setattr(module, "make_evaluation_crop", lambda config: None)
    assert pictures.crops(config_of("scott_3_16", 32), 5, CPU, "x") is None


def test_images_are_decoded_once_as_far_as_there_is_room(pictures, read, monkeypatch):
    one = 72 * 80 * 3  # bytes of the first image of each class
    monkeypatch.setattr(module, "find_room", lambda device: one + 100)
    for _ in range(2):
        for i in range(3):
            assert torch.equal(pictures.decoded(i), pil_to_tensor(load_image(pictures[i])))
    assert read == [pictures[i] for i in (0, 1, 2, 1, 2)]


def test_a_gpu_cuts_the_same_boxes(pictures, read):
    """Let a CPU stand in for the GPU, because the device "meta" computes nothing."""
    held = pictures._move_to_device(CPU, 5, "x")
    assert len(read) == 12
    draws = [Draws.keyed(make_key(0, "probe"), torch.zeros(12, dtype=torch.long), torch.arange(12)) for _ in range(2)]
    images = [pil_to_tensor(load_image(image)) for image in pictures]
    expected = make_random_crops(images, 32, draws[0])
    found = make_random_crops_on_device(held, range(12), 32, draws[1])
    assert (found.int() - expected.int()).abs().max() <= 2
    assert pictures.on(CPU, 5, "x") is None


def test_what_does_not_fit_a_gpu_stays_off_it(pictures, monkeypatch):
    for limits in ({"cuda": 2**20, "cpu": 72 * 80 * 3 * 4}, {"cuda": 72 * 80 * 3 * 4, "cpu": 2**20}):
        monkeypatch.setattr(module, "find_room", lambda device, limits=limits: limits[device.type])
        fresh = PixelCache(pictures.images)
        assert fresh.on(torch.device("cuda"), 5, "x") is None
        assert fresh.decoded(0).shape == (3, 72, 80)


def test_pictures_are_their_images(pictures):
    assert len(pictures) == 12
    assert list(pictures) == pictures.images
    assert PixelCache.of(pictures) is pictures
    assert PixelCache.of(pictures.images).images is pictures.images
    assert np.asarray(load_image(pictures[-1])).shape == (72, 85, 3)
