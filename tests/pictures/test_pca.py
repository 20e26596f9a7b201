import numpy as np
import pytest
import timm
import torch
from PIL import Image

from scott_models.errors import DataError, WeightsError
from scott_models.pictures.pca import draw_pca, find_components, find_threshold, project


def scene(place, part):
    """Draw patch features (8, 8, 16): an object of two parts on a background, all three with features of their own."""
    features = torch.zeros(8, 8, 16)
    features[..., 0] = -1
    features[2:6, 2:6, 0] = 3
    features[2:4, 2:6, place] = part
    return features + torch.randn(8, 8, 16) * 0.05


@pytest.fixture
def things():
    return torch.stack([scene(5, 1), scene(5, 1), scene(5, -1)])


def test_the_foreground_is_what_is_in_the_middle(things):
    expected = torch.zeros(3, 8, 8, dtype=torch.bool)
    expected[:, 2:6, 2:6] = True
    for sign in (1, -1):  # whichever way the component points
        found = find_components(sign * things)
        assert torch.equal(found.foreground, expected)
        assert found.first[expected].min() > found.first[~expected].max()
        assert found.colours[~expected].abs().max() == 0


def test_colours_mean_the_same_in_all_images(things):
    colours = find_components(things).colours
    upper = colours[:, 2:4, 2:6, 0].flatten(1).mean(dim=1)  # red is the only component that is not noise
    assert upper[0] == pytest.approx(upper[1].item(), abs=0.1)
    assert (upper[0] - upper[2]).abs() > 0.4
    assert colours.min() >= 0
    assert colours.max() <= 1
    again = find_components(things[[2, 0, 1]]).colours
    assert torch.allclose(again[0], colours[2], atol=1e-5)


def test_images_without_any_foreground():
    found = find_components(torch.ones(2, 4, 4, 8))
    assert found.colours.isfinite().all()


def test_otsu_parts_two_heaps():
    values = torch.cat([torch.randn(900) * 0.1, 5 + torch.randn(100) * 0.1])
    assert 0.5 < find_threshold(values) < 4.5


def test_components_are_those_of_the_covariance():
    features = torch.randn(200, 6, dtype=torch.float64) * torch.tensor([5, 3, 1, 0.5, 0.2, 0.1], dtype=torch.float64)
    ours = project(features, 2)
    left, values, _ = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    assert torch.allclose(ours.abs(), (left * values)[:, :2].abs())
    assert torch.allclose(project(-features, 2), -ours)


def test_a_picture_of_our_own_weights(photos, tmp_path):
    out = tmp_path / "pca.png"
    found = draw_pca([photos / "red"], out, "scott_3_16", img_size=64, token_map=tmp_path / "maps.npz")
    assert found.first.shape == (6, 4, 4)
    with Image.open(out) as picture:
        assert picture.size == (4 * 230 + 6, 6 * 248 + 6)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000
    maps = np.load(tmp_path / "maps.npz")
    assert maps["features"].shape == (6, 4, 4, 384)
    assert list(maps["names"]) == [str(photos / "red" / f"{i}.png") for i in range(6)]
    assert (maps["colours"][~maps["foreground"]] == 0).all()


def test_another_familys_model(photos, tmp_path, monkeypatch):
    """Use a model with a class token and registers, which are not patches."""
    import timm

    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: make(name, **more))
    found = draw_pca([photos / "red"], tmp_path / "a.png", "vit_small_patch14_reg4_dinov2", img_size=70, look="blocky")
    assert found.first.shape == (6, 5, 5)
    with pytest.raises(DataError, match="vision transformer.*found ResNet"):
        draw_pca([photos / "red"], tmp_path / "b.png", "resnet18")
    assert not (tmp_path / "b.png").exists()


def test_what_cannot_be_drawn(photos, tmp_path):
    with pytest.raises(DataError, match="a.pdf.*picture's name.*.png, .jpg"):
        draw_pca([photos], tmp_path / "a.pdf", "scott_3_16")
    with pytest.raises(DataError, match="in a folder that exists"):
        draw_pca([photos], tmp_path / "nowhere" / "a.png", "scott_3_16")
    with pytest.raises(DataError, match="at most 256 images.*found 257"):
        draw_pca([photos / "red" / "0.png"] * 257, tmp_path / "a.png", "scott_3_16")
    with pytest.raises(WeightsError, match="multiples of 16"):
        draw_pca([photos], tmp_path / "a.png", "scott_3_16", img_size=70)


def test_one_patch_is_nothing_to_compare(photos, tmp_path):
    with pytest.raises(DataError, match="more than one patch.*found one"):
        draw_pca([photos / "red" / "0.png"], tmp_path / "p.png", "scott_3_16", img_size=16)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("scott_3_16", 0, "img_size.*at least 1 pixel.*got 0"),
        ("vit_tiny_patch16_224", 100, "img_size.*multiples of 16.*got 100 x 100"),
    ],
)
def test_sizes_that_are_none(photos, tmp_path, monkeypatch, name, size, words):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *names, **given: create(*names, **{**given, "pretrained": False}))
    with pytest.raises((DataError, WeightsError), match=words):
        draw_pca([photos], tmp_path / "p.png", name, img_size=size)
