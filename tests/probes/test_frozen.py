from itertools import islice

import numpy as np
import pytest
import timm
import torch

from scott_models.data.files import find_images
from scott_models.data.images import load_image
from scott_models.errors import DataError
from scott_models.probes import frozen as module
from scott_models.probes import pixel_cache
from scott_models.probes.features import extract, load_model
from scott_models.probes.frozen import Cache, Frozen
from scott_models.probes.pixel_cache import PixelCache


@pytest.fixture
def frozen():
    return Frozen(load_model("scott_3_16", pretrained=False, img_size=32), "tiny", 32)


def test_images_go_through_the_evaluation_transform(frozen, photos):
    images = find_images([photos])
    expected, _ = extract(frozen.model, images, img_size=32)
    plain, kept = frozen.pooled(images, "x"), PixelCache(images)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    for _ in range(2):
        assert torch.equal(frozen.pooled(kept, "x"), plain)


def test_views_belong_to_seed_epoch_and_image_whatever_the_batch(frozen, photos):
    images = find_images([photos])
    places = torch.tensor([(epoch, i) for epoch in range(2) for i in range(4)])
    together = next(frozen.views(images, [places], seed=0))[0]
    alone = torch.cat([pooled for pooled, _ in frozen.views(images, places.split(1), seed=0)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert (together[:4] - together[4:]).abs().amax(dim=1).min() > 1e-3  # another epoch, another view
    assert not torch.allclose(together, next(frozen.views(images, [places], seed=1))[0], atol=1e-3)


def test_the_cache_is_the_images_as_they_are_then_their_views(frozen, photos, tmp_path):
    images = find_images([photos])
    cache = Cache(frozen, images, 2, tmp_path, patches=True)
    assert cache.pooled.shape == (3, 12, 384)
    torch.testing.assert_close(cache.pooled[0], frozen.pooled(images, "x"))
    pooled, patches = next(cache.views([torch.tensor([(3, 5), (1, 2), (5, 0)])]))
    expected = next(frozen.views(images, [torch.tensor([(1, 2), (2, 0)])], seed=0))
    torch.testing.assert_close(pooled[0], cache.pooled[0, 5])  # epoch 3 uses pass 0 of 0, 1 and 2
    torch.testing.assert_close(pooled[1:], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(patches[1:].float(), expected[1], atol=1e-2, rtol=1e-2)  # kept as fp16


def test_a_models_own_colours_are_kept(photos):
    """Expect the model's own mean and standard deviation, not ImageNet's."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    seen = []
    model.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    frozen = Frozen(model, "tiny", 32)
    next(frozen.views(find_images([photos]), [torch.tensor([(1, i) for i in range(12)])], seed=0))
    assert seen[-1].min() >= -1
    assert seen[-1].max() <= 1
    assert frozen.has_patches


def test_feature_maps_are_no_patches():
    frozen = Frozen(load_model("resnet10t", pretrained=False, img_size=64), "resnet", 64)
    assert not frozen.has_patches
    assert frozen.dim == 512


def test_a_size_the_model_cannot_take():
    for name in ("vit_tiny_patch16_224", "scott_3_16"):
        model = timm.create_model(name, num_classes=0).eval()
        with pytest.raises(DataError, match="tiny.*cannot take.*100 x 100"):
            Frozen(model, "tiny", 100)


def test_a_damaged_image_is_named(frozen, photos):
    (photos / "red" / "9.png").write_bytes(b"\x89PNG")
    images = find_images([photos])
    assert load_image(images[0])
    with pytest.raises(DataError, match=r"9\.png: expected an image"):
        list(frozen.views(images, [torch.tensor([(0, i) for i in range(13)])], seed=0))


def test_damaged_weights_are_told():
    model = load_model("scott_3_16", pretrained=False, img_size=32)
    torch.nn.init.constant_(model.blocks[0].attn.proj.weight, torch.nan)
    with pytest.raises(DataError, match="tiny: expected finite features"):
        Frozen(model, "tiny", 32)


def test_views_are_square():
    model = timm.create_model("scott_3_16", img_size=(32, 64)).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 64)}
    frozen = Frozen(model, "wide")
    with pytest.raises(DataError, match="wide.*square images.*found 32 x 64"):
        frozen.require_squares()


@pytest.mark.parametrize("chosen", [lambda size, device: device, lambda size, device: None])
def test_patches_lie_in_memory_or_in_a_file(frozen, photos, tmp_path, monkeypatch, chosen):
    asked = []
    monkeypatch.setattr(module, "choose_place", lambda size, device: (asked.append(size), chosen(size, device))[1])
    cache = Cache(frozen, find_images([photos]), 1, tmp_path, patches=True)
    assert asked[0] == cache.patches.nbytes == 2 * 12 * 4 * 384 * 2
    assert (tmp_path / "patches.npy").exists() == (chosen(0, 1) is None)
    pooled, patches = next(cache.views([torch.tensor([(1, 2), (2, 0)])]))
    torch.testing.assert_close(patches.float().mean(dim=1), pooled, atol=1e-2, rtol=1e-2)
    assert torch.equal(patches, torch.stack([cache.patches[1, 2], cache.patches[0, 0]]))


def test_pooled_features_alone_need_no_patches(frozen, photos, tmp_path):
    cache = Cache(frozen, find_images([photos]), 1, tmp_path, patches=False)
    assert next(cache.views([torch.tensor([(1, 2)])]))[1] is None


@pytest.fixture
def spoiled(monkeypatch):
    """Return a function that takes a change of patch features (B, N, D) and applies it to all later batches."""

    def spoil(change):
        forward = module.forward_features

        def changed(model, images):
            patches = change(forward(model, images)[1])
            return patches.mean(dim=1), patches

        monkeypatch.setattr(module, "forward_features", changed)

    return spoil


def third_of_nans(patches):
    index = torch.arange(len(patches)).view(-1, 1, 1)
    return torch.where(index % 3 == 1, torch.nan, patches)


def test_features_that_are_not_finite_are_told(frozen, photos, tmp_path, spoiled):
    images = find_images([photos])
    spoiled(third_of_nans)
    expected = rf"tiny.*4 of 12.*not finite.*first is .*{images[1].name}; "
    with pytest.raises(DataError, match=expected):
        frozen.pooled(images, "x")
    with pytest.raises(DataError, match=expected):
        list(frozen.views(images, torch.tensor([(0, i) for i in range(12)]).split(6), seed=0))
    with pytest.raises(DataError, match=expected):
        Cache(frozen, images, 1, tmp_path, patches=False)


def test_an_epoch_is_enough_to_find_them(frozen, photos, spoiled):
    """Expect the error after the first epoch, not after the last."""
    images = find_images([photos])
    spoiled(third_of_nans)
    views = frozen.views(images, torch.tensor([(epoch, i) for epoch in range(3) for i in range(12)]).split(6), seed=0)
    with pytest.raises(DataError, match="4 of 12 images are not finite"):
        list(islice(views, 3))


def test_views_that_are_not_finite_are_told(frozen, photos, tmp_path, spoiled):
    """Spoil augmented views of images whose own features are finite."""
    images, batches = find_images([photos]), []
    spoiled(lambda patches: (batches.append(1), patches if len(batches) < 2 else third_of_nans(patches))[1])
    with pytest.raises(DataError, match="tiny.*4 of 12.*not finite"):
        Cache(frozen, images, 1, tmp_path, patches=True)


def test_patches_beyond_fp16_are_told(frozen, photos, tmp_path, spoiled):
    images = find_images([photos])
    spoiled(lambda patches: patches.clamp(-1, 1) * 1e5)
    with pytest.raises(DataError, match="12 of 12.*at most 65504.*fp16.*`paper`"):
        Cache(frozen, images, 1, tmp_path, patches=True)
    assert Cache(frozen, images, 1, tmp_path, patches=False).pooled.isfinite().all()
    assert frozen.pooled(images, "x").isfinite().all()


def test_views_read_images_once(frozen, photos, monkeypatch):
    """Expect that later epochs do not decode the images again."""
    images, read = PixelCache(find_images([photos])), []
    load = pixel_cache.load_image
    monkeypatch.setattr(pixel_cache, "load_image", lambda path: (read.append(path), load(path))[1])
    pieces = torch.tensor([(epoch, i) for epoch in range(4) for i in range(12)]).split(6)
    found = torch.cat([pooled for pooled, _ in frozen.views(images, pieces, seed=0)])
    assert len(read) == 12
    expected = torch.cat([pooled for pooled, _ in frozen.views(images.images, pieces, seed=0)])
    assert torch.equal(found, expected)


def test_a_gpu_that_holds_the_images_cuts_their_views(frozen, photos, monkeypatch):
    """Expect the same draws as without a GPU; here a CPU stands in for the GPU."""
    images = PixelCache(find_images([photos]))
    pieces = torch.tensor([(epoch, i) for epoch in range(2) for i in range(12)]).split(6)
    expected = torch.cat([pooled for pooled, _ in frozen.views(images, pieces, seed=0)])
    held = images._move_to_device(torch.device("cpu"), 5, "x")
    monkeypatch.setattr(images, "on", lambda device, batch, what: held)
    found = torch.cat([pooled for pooled, _ in frozen.views(images, pieces, seed=0)])
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
    assert not torch.equal(found[:12], found[12:])
