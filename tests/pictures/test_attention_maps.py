import pytest
import timm
import torch
from PIL import Image

from scott_models.errors import DataError
from scott_models.pictures.attention_maps import draw_attention, draw_maps


def test_maps_are_what_patches_get(tiny):
    images = torch.randn(2, 3, 64, 64)
    maps = draw_maps(tiny, images)
    attention = tiny.get_attention(images)[0]
    assert maps.shape == (2, 2, 4, 4)
    assert torch.allclose(maps.flatten(2), attention.mean(dim=2), atol=1e-6)
    assert torch.allclose(maps.sum(dim=(-2, -1)), torch.ones(2, 2))  # the attention of a patch sums to 1
    assert torch.equal(draw_maps(tiny, images, 0), draw_maps(tiny, images, -2))


def test_a_picture(photos, tmp_path):
    maps = draw_attention([photos / "red"], tmp_path / "a.png", "scott_3_16", img_size=64, look="blocky")
    assert maps.shape == (6, 4, 4, 4)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (5 * 230 + 6, 6 * 248 + 6)


def test_what_has_no_attention(tiny):
    with pytest.raises(DataError, match="block: expected -2 to 1, got 2"):
        draw_maps(tiny, torch.zeros(1, 3, 64, 64), 2)
    with pytest.raises(DataError, match="one of our models.*found VisionTransformer"):
        draw_maps(timm.create_model("vit_tiny_patch16_224"), torch.zeros(1, 3, 224, 224))
