import numpy as np
import pytest
import timm
import torch

from scott_models.data import find_images, load_image
from scott_models.errors import DataError
from scott_models.features import extract, load_model
from scott_models.frozen import Cache, Frozen


@pytest.fixture
def frozen():
    return Frozen(load_model("scott_3_16", pretrained=False, img_size=32), "tiny", 32)


def test_images_go_through_the_evaluation_transform(frozen, photos):
    images = find_images([photos])
    expected, _ = extract(frozen.model, images, img_size=32)
    np.testing.assert_allclose(frozen.pooled(images, "x"), expected, atol=1e-5)


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
    torch.testing.assert_close(pooled[0], cache.pooled[0, 5])  # epoch 3 of passes 0, 1, 2
    torch.testing.assert_close(pooled[1:], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(patches[1:].float(), expected[1], atol=1e-2, rtol=1e-2)  # kept as fp16


def test_a_models_own_colours_are_kept(photos):
    """Not ImageNet's mean and spread, if the model wants others."""
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
        with pytest.raises(DataError, match="tiny: cannot take images of 100 x 100 pixels"):
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
    with pytest.raises(DataError, match="wide: expected square images for augmented views, found 32 x 64"):
        frozen.require_squares()
